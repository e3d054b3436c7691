"""A small configuration with five sources of four kinds, shared by tests of several sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from PIL import Image

from data_pipelines.sources.records import write_records
from tests.data.samples import example, picture
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
