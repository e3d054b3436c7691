"""Data that changed between two starts are known, and it is said how."""

from __future__ import annotations

import json
import os

import pytest

from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.identity import (
    changes,
    fingerprint,
    folder_identity,
    from_json,
    records_identity,
)
from data_pipelines.sources.records import find_records, write_records
from tests.data.samples import example

ROWS = [f'{{"file_name": "{i}.png", "text": "picture {i}"}}\n' for i in range(100)]


@pytest.fixture
def folder(tmp_path):
    for index in range(100):
        (tmp_path / f"{index}.png").write_bytes(b"x" * index)
    return write_list(tmp_path, ROWS)


def write_list(path, rows):
    (path / "captions.jsonl").write_text("".join(rows), encoding="utf-8")
    return path


def folder_changes(folder, change):
    before = folder_identity(FolderSource(folder))
    change(folder)
    source = FolderSource(folder)
    stored = from_json(json.loads(json.dumps(before)))
    return changes(stored, folder_identity(source), source)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (ROWS + ROWS[:2], "has new rows at its end (100 rows before, 102 now)"),
        (ROWS[::-1], "has the same rows in another order"),
        (ROWS[:90], "was rewritten (100 rows before, 90 now)"),
        ([*ROWS[:50], ROWS[50].replace("picture", "drawing"), *ROWS[51:]], "was rewritten (100 ro"),
    ],
)
def test_what_happened_to_a_list_of_texts_is_said(folder, rows, words):
    (line,) = folder_changes(folder, lambda path: write_list(path, rows))
    assert line.startswith(f"captions.jsonl {words}")


def test_other_pictures_under_the_same_names_are_noticed(folder):
    (line,) = folder_changes(folder, lambda path: (path / "4.png").write_bytes(b"other"))
    assert line == "captions.jsonl is the same, but its pictures changed"


def test_data_that_were_touched_or_moved_are_the_same(folder, tmp_path_factory):
    before = folder_identity(FolderSource(folder))
    for path in folder.iterdir():
        os.utime(path)
    moved = folder.rename(tmp_path_factory.mktemp("elsewhere") / "photos")
    now = folder_identity(FolderSource(moved))
    assert not changes(before, now) and fingerprint(before) == fingerprint(now)


def identity(path):
    return records_identity(find_records(path))


def test_record_files_that_came_went_or_were_rewritten_are_named(tmp_path):
    a = write_records(tmp_path / "a", [example(i) for i in range(8)], shards=2)
    write_records(tmp_path / "c", [example(0)])
    before = identity(tmp_path)
    assert not changes(before, identity(tmp_path))
    (tmp_path / "c-00000-of-00001.array_record").unlink()
    write_records(tmp_path / "b", [example(9)])
    write_records(tmp_path / "other", [example(i) for i in range(1, 5)])
    (tmp_path / "other-00000-of-00001.array_record").rename(a[1])
    assert changes(before, identity(tmp_path)) == [
        "c-00000-of-00001.array_record is missing",
        "b-00000-of-00001.array_record is new",
        "a-00001-of-00002.array_record was rewritten",
    ]
    assert fingerprint(before) != fingerprint(identity(tmp_path))


def test_many_changed_files_are_counted(tmp_path):
    write_records(tmp_path / "a", [example(i) for i in range(12)], shards=12)
    before = identity(tmp_path)
    write_records(tmp_path / "a", [example(i + 1) for i in range(12)], shards=12)
    lines = changes(before, identity(tmp_path))
    assert len(lines) == 5 and lines[-1] == "8 more files changed"
