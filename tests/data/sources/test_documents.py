"""Finished documents from a folder: segments, their faults, and what changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image as Pillow

from data_pipelines.faults import RecordError, SourceError
from data_pipelines.segments import DRAWN, SOURCE, UNDERSTOOD, Image, Text
from data_pipelines.sources.broken import SkipBroken
from data_pipelines.sources.cache import CachedSource
from data_pipelines.sources.documents import DocumentsSource
from data_pipelines.sources.identity import changes, folder_identity
from data_pipelines.sources.registry import open_source
from data_pipelines.sources.split import EVALUATION, TRAIN
from data_pipelines.sources.traits import DOCUMENT, traits_of_source

HAT = [{"edit": "a.png"}, {"look_at": "b.png"}, {"prompt": "give him the hat"}, {"draw": "a.png"}]


def write(folder, rows):
    folder.mkdir(exist_ok=True)
    for name, level in (("a.png", 10), ("b.png", 200)):
        Pillow.fromarray(np.full((6, 8, 3), level, np.uint8)).save(folder / name)
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "documents.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_a_document_has_the_segments_of_its_line_in_order(tmp_path):
    (document,) = DocumentsSource(write(tmp_path, [{"segments": HAT}]))
    roles = [s.role if isinstance(s, Image) else s for s in document.segments]
    assert roles == [SOURCE, UNDERSTOOD, Text("give him the hat"), DRAWN]
    assert [s.pixels[0, 0, 0] for s in document.segments if isinstance(s, Image)] == [10, 200, 10]
    assert document.key.endswith("documents.jsonl line 1")


def test_a_text_is_a_document_that_is_learned_whole(tmp_path):
    (document,) = DocumentsSource(write(tmp_path, [{"text": "a page of words"}]))
    assert document.segments == (Text("a page of words", supervised=True),)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"segments": HAT[:3]}, "ends without a response or a drawn picture"),
        ({"segments": []}, "ends without a response"),
        (
            {"segments": [{"answer": "yes"}]},
            "is not a segment: give an object with one of the keys",
        ),
        ({"segments": [{"prompt": "a", "response": "b"}]}, "is not a segment"),
        ({"segments": [{"draw": 3}]}, "is not a segment"),
        ({"segments": [{"draw": "c.png"}]}, "c.png"),
        ({"segments": [{"response": " "}]}, "empty text: remove its segment"),
        ({"segments": [{"response": "<|im_end|>"}]}, "contains '<|im_end|>'"),
        ({"text": "a", "segments": HAT}, "give either segments, a list of objects, or a text"),
        ({"pages": 3}, "give either segments"),
        ("{", "not JSON"),
    ],
)
def test_a_line_that_is_no_document_is_named_with_its_fault(tmp_path, row, words):
    source = DocumentsSource(write(tmp_path, [{"text": "fine"}, row]))
    with pytest.raises(RecordError) as caught:
        source[1]
    assert "documents.jsonl line 2" in str(caught.value) and words in str(caught.value)
    assert SkipBroken(source)[1].segments == source[0].segments


def test_a_folder_without_documents_is_refused_with_an_example_line(tmp_path):
    with pytest.raises(SourceError, match="has no documents.jsonl: write documents.jsonl with li"):
        DocumentsSource(tmp_path)


def test_documents_are_held_out_and_cached_as_other_records(tmp_path):
    rows = [{"text": f"page {index}"} for index in range(40)]
    config = {"kind": "documents", "path": write(tmp_path, rows), "held_out": 0.25}
    parts = [open_source({**config, "split": split}) for split in (TRAIN, EVALUATION)]
    texts = [
        CachedSource(part, 10**6)[i].segments[0].text for part in parts for i in range(len(part))
    ]
    assert sorted(texts) == sorted(row["text"] for row in rows) and len(parts[1]) > 0
    assert set(traits_of_source(parts[0])) == {DOCUMENT}


def test_other_pictures_of_documents_are_noticed(tmp_path):
    before = folder_identity(DocumentsSource(write(tmp_path, [{"segments": HAT}])))
    (tmp_path / "a.png").write_bytes(b"other")
    (line,) = changes(before, folder_identity(DocumentsSource(tmp_path)))
    assert line == "documents.jsonl is the same, but its pictures changed"
