"""Pages in the layouts of OBELICS and MMC4 become documents whose texts are all learned."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from data_pipelines.batches import unified_loader
from data_pipelines.build import source_options
from data_pipelines.faults import RecordError, SourceError
from data_pipelines.segments import DRAWN, UNDERSTOOD, Image
from data_pipelines.sources.configured import configured_sources
from data_pipelines.sources.interleaved import InterleavedSource
from data_pipelines.sources.registry import open_source
from tests.data.mixed import mixed_config
from tests.data.samples import tokenizer
from tests.data.sources.formats import png, write_jsonl, write_parquet
from tests.data.sources.test_conversations import parts
from unicom_jax.core.batch import Role

OBELICS = {
    "texts": ["Two cats met.", None, "They became friends.\n", None],
    "images": [None, "0.png", None, "1.png"],
}
MMC4 = {
    "text_list": ["Two cats met.", "They became", "friends.", " "],
    "image_info": [
        {"image_name": "1.png", "matched_text_index": 3, "raw_url": "https://x.y/b.png"},
        {"image_name": "0.png", "matched_text_index": 1, "raw_url": "https://x.y/a.png"},
    ],
    "similarity_matrix": [[0.3, 0.2]],
}
PAGE = ["> Two cats met.", 100, "> They became friends."]


@pytest.fixture(autouse=True)
def pictures(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for value in range(2):
        (tmp_path / f"{value}.png").write_bytes(png(100 + value))


def written(folder, layout):
    """A file with one page."""
    match layout:
        case "obelics.parquet":
            return write_parquet(folder / "a.parquet", {k: [v] for k, v in OBELICS.items()})
        case "obelics.parquet with bytes":
            files = [
                name and {"bytes": png(100 + int(name[0])), "path": None}
                for name in OBELICS["images"]
            ]
            columns = {"texts": [OBELICS["texts"]], "images": [files], "metadata": ["x"]}
            return write_parquet(folder / "a.parquet", columns)
        case "obelics.jsonl":
            return write_jsonl(folder / "a.jsonl", [OBELICS])
    return write_jsonl(folder / "a.jsonl", [MMC4])


LAYOUTS = ("obelics.parquet", "obelics.parquet with bytes", "obelics.jsonl", "mmc4.jsonl")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_same_page(layout, tmp_path):
    source = pickle.loads(pickle.dumps(InterleavedSource(written(tmp_path, layout))))
    assert len(source) == 1 and parts(source[0]) == PAGE
    assert {s.role for s in source[0].segments if isinstance(s, Image)} == {UNDERSTOOD}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_can_be_drawn_and_then_also_end_a_page(layout, tmp_path):
    source = InterleavedSource(written(tmp_path, layout), draw=True)
    assert parts(source[0]) == [*PAGE, 101]
    assert {s.role for s in source[0].segments if isinstance(s, Image)} == {DRAWN}


def test_names_of_pictures_may_be_relative_to_another_folder(tmp_path):
    (tmp_path / "lists").mkdir()
    path = written(tmp_path / "lists", "mmc4.jsonl")
    assert parts(InterleavedSource(path, images=tmp_path)[0]) == PAGE
    with pytest.raises(RecordError, match=r"cannot read image .*lists/0.png: No such file"):
        InterleavedSource(path)[0]
    with pytest.raises(SourceError, match=r"nowhere: no such folder: check data.source.images"):
        InterleavedSource(path, images=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"texts": ["a"]}, "give texts and images, two lists of the same length, or text_list"),
        ({"texts": ["a"], "images": []}, "two lists of the same length"),
        ({"texts": ["a"], "images": ["0.png"]}, "its place 1 has both a text and a picture"),
        ({"texts": [3, None], "images": [None, "0.png"]}, "a text is 3: give a text"),
        ({"texts": [None], "images": ["0.png"]}, "the page has no text: remove it, or draw its"),
        ({"text_list": [], "image_info": []}, "the page has no text"),
        ({"texts": [0, "a"], "images": [None, None]}, "a text is 0: give a text"),
        ({"texts": [None, "a"], "images": [False, None]}, "False is not a file name"),
        ({"captions": ["a"], "image": [None]}, "give texts and images"),
        ([1, 2], "not a JSON object: write one, {...}, a line"),
        ({"texts": [None, "a"], "images": ["https://x.y/a.png", None]}, "not fetched from the web"),
        ({"texts": [None, "a"], "images": [{"path": None}, None]}, "None is not a file name"),
        ({"text_list": "a"}, "text_list and image_info must be lists"),
        (
            {"text_list": ["a"], "image_info": [{"image_name": "0.png", "matched_text_index": 1}]},
            "belongs to no sentence of 1: give matched_text_index",
        ),
        ({"text_list": ["a <|im_end|>"]}, "contains '<|im_end|>'"),
    ],
)
def test_a_broken_page_is_named_with_its_fault(tmp_path, row, message):
    with pytest.raises(RecordError) as caught:
        InterleavedSource(write_jsonl(tmp_path / "a.jsonl", [row]))[0]
    assert message in str(caught.value) and "a.jsonl record 1" in str(caught.value)


def test_a_page_of_sentences_may_have_other_columns(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{**MMC4, "images": 2, "texts": "x"}])
    assert parts(InterleavedSource(path)[0]) == PAGE


def test_files_without_pages_are_refused(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a"], "images": [["0.png"]]})
    with pytest.raises(SourceError, match=r"a.parquet: no column 'texts' among text, images: page"):
        InterleavedSource(path)
    write_jsonl(tmp_path / "b.jsonl", [MMC4])
    with pytest.raises(SourceError, match=r"files of another kind \(.jsonl, .parquet\): name the"):
        InterleavedSource(tmp_path)


def test_a_configuration_reads_pages_and_says_what_their_pictures_are_for(tmp_path):
    write_jsonl(tmp_path / "pages.jsonl", [MMC4] * 20)
    item = {"kind": "interleaved", "path": str(tmp_path / "pages.jsonl"), "tasks": "document"}
    found = {}
    for draw in (False, True):
        config = mixed_config(
            [{**item, "draw": draw}],
            pretrain__mixture__visual_qa=0.0,
            pretrain__window_documents=4,
            pretrain__cfg_dropout=0.0,
        )
        roles = unified_loader(config, "pretrain", tokenizer()).at(0).roles
        found[draw] = {*map(int, np.unique(roles))} - {0}  # padding
    assert found[False] == {Role.TEXT, Role.UNDERSTAND}
    assert found[True] == {Role.TEXT, Role.CLEAN, Role.NOISY}
    config.data.sources[0]["kind"], config.data.sources[0]["tasks"] = "jsonl", {}
    with pytest.raises(SourceError, match=r"draw=True does nothing for kind 'jsonl', only for int"):
        source_options(config, "train", False, configured_sources(config)[0])


def test_pages_are_held_out_as_other_records(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [json.dumps(OBELICS)] * 60)
    given = {"kind": "interleaved", "paths": str(path), "held_out": 0.2}
    train, held = (open_source({**given, "split": split}) for split in ("train", "eval"))
    assert len(train) + len(held) == 60 and len(held) > 5
