"""Finished documents from a folder: segments, their faults, and what changed."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image as Pillow

from data_pipelines.faults import RecordError, SourceError
from data_pipelines.segments import DRAWN, SOURCE, UNDERSTOOD, Image, Text
from data_pipelines.sequences.sequence import build_document
from data_pipelines.sources.broken import SkipBroken
from data_pipelines.sources.cache import CachedSource
from data_pipelines.sources.documents import DocumentsSource
from data_pipelines.sources.identity import changes, folder_identity
from data_pipelines.sources.registry import open_source
from data_pipelines.sources.split import EVALUATION, TRAIN
from data_pipelines.sources.traits import DOCUMENT, traits_of_source
from tests.data.samples import SMALL, tokenizer
from tests.data.sources.formats import png, write_jsonl
from unicom_jax.core.batch import Role

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


EDITS = {
    "inpainting with a mask": (
        [{"edit": "0.png"}, {"look_at": "1.png"}, {"prompt": "Fill in a hat."}, {"draw": "2.png"}],
        [SOURCE, UNDERSTOOD, DRAWN],
    ),
    "a subject in a new place": (
        [{"look_at": "0.png"}, {"prompt": "Draw this cat in the snow."}, {"draw": "2.png"}],
        [UNDERSTOOD, DRAWN],
    ),
    "several references": (
        [
            {"edit": "0.png"},
            {"look_at": "1.png"},
            {"look_at": "2.png"},
            {"prompt": "Put the hat and the scarf on him."},
            {"draw": "2.png"},
        ],
        [SOURCE, UNDERSTOOD, UNDERSTOOD, DRAWN],
    ),
}


@pytest.mark.parametrize("kind", EDITS)
def test_edits_with_masks_subjects_and_references_are_documents(tmp_path, kind):
    """What is drawn sees every reference, and the source of the edit is given as latents."""
    for value in range(3):
        (tmp_path / f"{value}.png").write_bytes(png(100 + value))
    segments, roles = EDITS[kind]
    write_jsonl(tmp_path / "documents.jsonl", [{"segments": segments}])
    content = DocumentsSource(tmp_path)[0]
    assert [s.role for s in content.segments if isinstance(s, Image)] == roles
    document = build_document(content.segments, tokenizer(), SMALL)
    written = {SOURCE: Role.CLEAN, UNDERSTOOD: Role.UNDERSTAND, DRAWN: Role.NOISY}
    pictures = document.roles[document.roles != Role.TEXT].reshape(-1, 4)  # of four tokens each
    assert pictures[:, 0].tolist() == [written[role] for role in roles]
    drawn = np.flatnonzero(document.roles == Role.NOISY)
    references = np.flatnonzero((document.roles != Role.TEXT) & (document.roles != Role.NOISY))
    assert (document.mask.context_start[drawn] == 0).all()
    assert (document.mask.context_stop[drawn] > references.max()).all()


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


def test_a_worker_is_not_sent_where_the_lines_of_a_list_begin(tmp_path):
    write_jsonl(tmp_path / "documents.jsonl", ["", *[{"text": f"words {n}"} for n in range(5000)]])
    source = DocumentsSource(tmp_path)
    sent = pickle.dumps(source)
    assert len(sent) < 2000 and pickle.loads(sent)[4999] == source[4999]
    assert source[4999].key.endswith("line 5001")


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
