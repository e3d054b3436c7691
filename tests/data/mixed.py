"""Small configurations with several sources, shared by tests of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from PIL import Image

from data_pipelines.sources.records import write_records
from tests.data.samples import example, picture
from tests.data.sources.formats import png, write_jsonl, write_parquet, write_shards
from tests.tiny import tiny_config
from unicom_jax.config import KEYS
from unicom_jax.config.key import checked

PAGE = [{"response": "a gray square"}, {"look_at": "0.png"}, {"response": "and a brighter one"}]
WORDS = "a page of words without any picture, which is a good deal longer than a caption"


def write_sources(folder: Path) -> dict[str, Path]:
    """A folder of pictures, two of documents, and records with edits, by name."""
    paths = {name: folder / name for name in ("photos", "words", "pages", "edits")}
    for name in ("photos", "words", "pages"):
        paths[name].mkdir(parents=True)
    for index in range(12):
        for name in ("photos", "pages"):
            Image.fromarray(picture(index, 32, 32)).save(paths[name] / f"{index}.png")
    lists = {
        "photos/captions.jsonl": [
            {"image": f"{index}.png", "text": f"gray {index}"} for index in range(12)
        ],
        "words/documents.jsonl": [{"text": f"{WORDS} {index}"} for index in range(40)],
        "pages/documents.jsonl": [{"segments": PAGE}] * 30,
    }
    for name, rows in lists.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name).write_text(text, encoding="utf-8")
    write_records(paths["edits"] / "edits", [example(index) for index in range(20)])
    return paths


def entries(paths: dict[str, Path]) -> list[dict[str, Any]]:
    """Items of `data.sources`; Scenes serve what the stage's mixture has."""
    return [
        {
            "kind": "folder",
            "path": str(paths["photos"]),
            "tasks": {"text_to_image": 3, "image_to_text": 1},
            "weight": 4.0,
        },
        {"kind": "documents", "path": str(paths["words"]), "tasks": "document", "weight": 3.0},
        {"kind": "documents", "path": str(paths["pages"]), "tasks": "document", "weight": 1.0},
        {"kind": "array_record", "path": str(paths["edits"]), "tasks": "edit", "weight": 1.0},
        {"kind": "scenes", "size": 50, "weight": 1.0},
    ]


def six_formats(paths: dict[str, Path], folder: Path) -> list[dict[str, Any]]:
    """Items of `data.sources`: text, tar shards, Parquet, documents, ArrayRecord and JSONL, with
    25% texts, 45% text to image, interleaved documents and edits.

    Args:
      paths: of `write_sources`.
      folder: where the other data go.
    """
    (folder / "words").mkdir()
    (folder / "words" / "a.txt").write_text("gray words\n" * 30, encoding="utf-8")
    write_shards(folder, 2, 10)
    columns = {"image": [png(i) for i in range(20)], "text": [f"gray {i}" for i in range(20)]}
    write_parquet(folder / "a.parquet", columns)
    turns = [{"from": "human", "value": "<image> what?"}, {"from": "gpt", "value": "a square"}]
    rows = [{"image": f"{i}.png", "conversations": turns} for i in range(12)]
    write_jsonl(folder / "talk.jsonl", rows)
    return [
        {"kind": "text", "path": str(folder / "words"), "tasks": "text", "weight": 25},
        {
            "kind": "webdataset",
            "name": "web",
            "path": str(folder / "s-{000..001}.tar"),
            "tasks": "text_to_image",
            "weight": 30,
        },
        {
            "kind": "parquet",
            "path": str(folder / "a.parquet"),
            "tasks": ("text_to_image", "image_to_text"),
            "weight": 30,
        },
        {"kind": "documents", "path": str(paths["pages"]), "tasks": "document", "weight": 5},
        {"kind": "array_record", "path": str(paths["edits"]), "tasks": "edit", "weight": 5},
        {
            "kind": "jsonl",
            "path": str(folder / "talk.jsonl"),
            "images": str(paths["photos"]),
            "tasks": "visual_qa",
            "weight": 5,
        },
    ]


def mixed_config(sources: list[dict[str, Any]], **overrides: Any) -> ConfigDict:
    """`tiny_config` with these sources. The mixture is for those without tasks."""
    settings = {
        "data__source__size": KEYS["data.source.size"].default,
        "data__sources": checked("data.sources", KEYS["data.sources"], sources),
        "data__threads": 1,
        "data__prefetch": 2,
        "pretrain__mixture__text_to_image": 0.0,
        "pretrain__mixture__visual_qa": 1.0,
        "pretrain__mixture__edit": 0.0,
        "pretrain__overlong": "skip",
    }
    return tiny_config(**{**settings, **overrides})
