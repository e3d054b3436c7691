"""What records can serve is known without decoding a picture, and stored beside the records."""

from __future__ import annotations

import json
import os
import pickle

import numpy as np
import pytest

from data_pipelines.sources import records
from data_pipelines.sources.broken import SkipBroken
from data_pipelines.sources.cache import CachedSource
from data_pipelines.sources.chosen import Chosen, records_with
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.records import ArrayRecordSource
from data_pipelines.sources.split import split_source
from data_pipelines.sources.traits import sidecar, traits_of
from tests.data.samples import example

NONE = {"questions": (), "edits": (), "thought": ""}
EXAMPLES = [example(i, **({} if i % 3 == 0 else NONE)) for i in range(12)]
EXPECTED = np.array([7, 0, 0] * 4, np.uint8)


@pytest.fixture
def stored(tmp_path):
    return records.write_records(tmp_path / "a", EXAMPLES, shards=2)


def in_order(values):
    """As two files hold them: the even examples, then the odd ones."""
    return np.concatenate([values[::2], values[1::2]])


def forbidden(*_):
    raise AssertionError("a picture or record is read")


def test_prepared_records_know_their_traits_without_being_read(stored, tmp_path, monkeypatch):
    source = ArrayRecordSource(tmp_path)
    monkeypatch.setattr(ArrayRecordSource, "_read", forbidden)
    np.testing.assert_array_equal(source.traits(), in_order(EXPECTED))


@pytest.mark.parametrize("missing", ["absent", "outdated", "of other length", "damaged", "empty"])
def test_records_without_stored_traits_are_read_once(stored, tmp_path, monkeypatch, missing):
    for path in stored:
        if missing == "absent":
            sidecar(path).unlink()
        elif missing == "outdated":
            os.utime(sidecar(path), (0, 0))
        elif missing == "of other length":
            np.save(sidecar(path), np.zeros(5, np.uint8))
        else:
            sidecar(path).write_bytes(b"junk" if missing == "damaged" else b"")
    monkeypatch.setattr(records, "load_image", forbidden)
    np.testing.assert_array_equal(ArrayRecordSource(tmp_path).traits(), in_order(EXPECTED))
    monkeypatch.setattr(ArrayRecordSource, "_read", forbidden)
    np.testing.assert_array_equal(ArrayRecordSource(tmp_path).traits(), in_order(EXPECTED))


def test_traits_of_a_folder_that_cannot_be_written_to_are_found_all_the_same(
    stored, tmp_path, monkeypatch, caplog
):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    for path in stored:
        sidecar(path).unlink()
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr("numpy.save", full)
    np.testing.assert_array_equal(ArrayRecordSource(tmp_path).traits(), in_order(EXPECTED))
    assert "cannot be written (No space left on device)" in caplog.text
    assert sorted(tmp_path.iterdir()) == before


def test_traits_of_a_folder_come_from_its_list_alone(tmp_path):
    rows = [
        {"questions": [{"question": "q", "answer": "a"}]},
        {"edits": [{"instruction": "i", "target": "a.png"}], "thought": "first"},
        {"text": 'a caption about "edits"'},
        {"questions": [], "edits": None, "thought": ""},
    ]
    lines = [json.dumps({"file_name": "a.png", "text": "a"} | row) for row in rows]
    lines += ["", '{"edits": broken']
    (tmp_path / "captions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert FolderSource(tmp_path).traits().tolist() == [1, 6, 0, 0, 0]


def test_traits_reach_through_whatever_wraps_a_source(stored, tmp_path):
    source = ArrayRecordSource(tmp_path)
    traits = in_order(EXPECTED)
    for wrapped in (SkipBroken(source), CachedSource(source, 1000)):
        np.testing.assert_array_equal(wrapped.traits(), traits)
    train = split_source(source, "train", 0.4)
    np.testing.assert_array_equal(train.traits(), traits[train.indices])


def test_only_fitting_records_are_chosen_and_the_choice_can_be_sent_to_a_worker(stored, tmp_path):
    source = ArrayRecordSource(tmp_path)
    chosen = pickle.loads(pickle.dumps(records_with(source, ("edits",), source.traits())))
    assert isinstance(chosen, Chosen)
    assert [traits_of(chosen[index]) for index in range(len(chosen))] == [7] * 4
    assert records_with(source, ("edits",), np.full(12, 2, np.uint8)) is source
