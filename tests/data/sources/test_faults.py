"""A fault of the machine is waited for or ends the run; it never counts as a broken record."""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image as PilImage

from data_pipelines import faults
from data_pipelines.faults import RecordError, SourceError, machine_fault, patiently
from data_pipelines.sources import open_files, records
from data_pipelines.sources.broken import read_or_next
from data_pipelines.sources.folder import FolderSource
from tests.data.samples import example


@contextmanager
def files_left(count):
    """Lets this process open `count` more files."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    first = os.dup(0)  # the lowest free number; the limit is one of numbers
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    os.close(first)
    free = (number for number in itertools.count(first) if number == first or number not in taken)
    limit = next(itertools.islice(free, count, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(faults, "PAUSES", (0.0,))


@pytest.fixture
def folder(tmp_path):
    PilImage.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "a.png")
    row = json.dumps({"file_name": "a.png", "text": "black"})
    (tmp_path / "captions.jsonl").write_text(f"{row}\n" * 20, encoding="utf-8")
    return tmp_path


@pytest.fixture
def many_files(tmp_path):
    records.write_records(tmp_path / "train", [example(i) for i in range(40)], shards=40)
    return tmp_path


def test_more_record_files_than_may_be_open_are_all_read(many_files, monkeypatch):
    monkeypatch.setattr(open_files, "MOST_OPEN", 4)
    with files_left(12):
        source = records.ArrayRecordSource(many_files)
        found = [read_or_next(source, index) for index in (*range(40), *range(40))]
    assert [passed for _, passed in found] == [0] * 80
    assert len({read.key for read, _ in found}) == 40


@pytest.mark.parametrize("kind", ["records", "folder"])
def test_running_out_of_file_descriptors_ends_the_run_with_its_cure(request, kind, impatient):
    path = request.getfixturevalue("many_files" if kind == "records" else "folder")
    source = records.ArrayRecordSource(path) if kind == "records" else FolderSource(path)
    message = r"cannot be read \(Too many open files\): raise the limit .*ulimit -n"
    with files_left(0), pytest.raises(SourceError, match=message) as caught:
        read_or_next(source, 3)
    assert "\n" not in str(caught.value)
    assert read_or_next(source, 3)[1] == 0  # it recovers


def test_many_examples_are_written_with_few_files_open(tmp_path):
    with files_left(12):
        paths = records.write_records(tmp_path / "a", [example(i) for i in range(40)], shards=40)
    assert len(records.ArrayRecordSource(tmp_path)) == len(paths) == 40


def failing(errors):
    """A read that raises each of `errors` once and then succeeds."""
    waiting = list(errors)

    def read():
        if waiting:
            raise waiting.pop(0)
        return "content"

    return read


def test_a_fault_that_passes_is_waited_for(monkeypatch):
    waited = []
    monkeypatch.setattr(faults.time, "sleep", waited.append)
    errors = [OSError(errno.EIO, "Input/output error"), RuntimeError("Connection reset by peer")]
    assert patiently(failing(errors), "x") == "content"
    assert waited == list(faults.PAUSES[:2])


@pytest.mark.parametrize(
    ("code", "fix"),
    [
        (errno.EIO, "check"),
        (errno.ENOSPC, "free space"),
        (errno.ECONNRESET, "check"),
        (errno.ESTALE, "check"),
        (errno.ETIMEDOUT, "check"),
    ],
)
def test_a_fault_that_stays_is_one_line(monkeypatch, code, fix):
    monkeypatch.setattr(faults.time, "sleep", lambda seconds: None)
    with pytest.raises(SourceError, match=f"^x: cannot be read .{os.strerror(code)}.: {fix}"):
        patiently(failing([OSError(code, os.strerror(code))] * 9), "x")


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError("image file is truncated"),  # Pillow's, without a number
        RuntimeError("Corrupted Riegeli/records file: chunk data hash mismatch"),
        RecordError("a caption is empty"),
    ],
)
def test_what_is_wrong_with_one_file_is_the_records_fault(error):
    assert machine_fault(error) is None
    with pytest.raises(type(error)):
        patiently(failing([error]), "x")
