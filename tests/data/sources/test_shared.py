"""Files from which worker processes map an array: equal arrays share one, and no file is left over
from processes that have ended."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines.sources import in_use
from data_pipelines.sources.index import INDICES, mapped
from data_pipelines.sources.shared import shared
from unicom_jax.core.paths import cache_folder

OTHER = """
import numpy as np
from data_pipelines.sources.shared import shared
print(shared(np.full(100, 1, np.uint8)), flush=True)
input()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(in_use, "HELD", {})


def array(value):
    return np.full(100, value, np.uint8)


def files():
    return sorted(cache_folder(INDICES).glob("shared-*"))


def test_the_file_of_another_process_stays_until_that_process_ends():
    with subprocess.Popen(
        [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        theirs = other.stdout.readline().strip()
        first = shared(array(2))
        assert {str(file) for file in files()} == {theirs, str(first)}
        other.kill()
    second = shared(array(3))
    assert files() == sorted([first, second])  # this process still uses the first one


def test_equal_arrays_of_two_processes_have_one_file_that_outlives_the_first():
    with subprocess.Popen(
        [sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        theirs = other.stdout.readline().strip()
        assert str(shared(array(1))) == theirs
        other.kill()
    shared(array(2))
    np.testing.assert_array_equal(mapped(shared(array(1))), array(1))
    assert len(files()) == 2


def test_an_array_that_is_mapped_outlives_its_file():
    file = shared(array(1))
    found = mapped(file)
    while in_use.HELD:
        os.close(in_use.HELD.popitem()[1])
    shared(array(2))
    assert not file.exists()
    np.testing.assert_array_equal(found, array(1))


def test_a_file_that_another_process_did_not_finish_goes(tmp_path):
    kept = shared(array(1))
    kept.with_name(f"{kept.name}-abc.unfinished").write_bytes(b"half")
    shared(array(1))
    assert files() == [kept]


def test_files_of_other_hosts_and_indices_stay():
    kept = shared(array(1))
    host, number = os.uname().nodename, "0" * 32
    names = (f"shared-elsewhere.lan-{number}.npy", f"shared-{host}-2-{number}.npy", "0.jsonl-0.npy")
    others = [kept.with_name(name) for name in names]
    for file in others:
        file.write_bytes(b"")
    shared(array(2))
    assert all(file.exists() for file in others)


def test_a_damaged_file_is_written_again():
    file = shared(array(1))
    file.write_bytes(b"damaged")
    np.testing.assert_array_equal(mapped(shared(array(1))), array(1))


def test_a_file_that_someone_removed_is_written_and_held_again():
    file = shared(array(1))
    file.unlink()
    assert shared(array(1)) == file
    with pytest.raises(BlockingIOError), in_use.unused(file):
        pass


def test_a_folder_that_cannot_be_written_to_has_no_file(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert shared(array(1)) is None
