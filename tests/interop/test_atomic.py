"""A folder is there whole, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from unicom_jax.interop.atomic import new_folder, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_with_all_its_files(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out" / "sub" / "a").read_text() == "1"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_midway_leaves_nothing(tmp_path, error):
    with pytest.raises(error), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("half")
        raise error
    assert names(tmp_path) == []


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path / "out") == ["a"]


def test_what_is_there_already_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    target = new_folder(tmp_path / "out")
    with pytest.raises(FileExistsError, match="name a new or empty folder"), target:
        pytest.fail("nothing may be written")
    assert names(tmp_path / "out") == ["mine"] and names(tmp_path) == ["out"]


def test_what_a_killed_attempt_left_is_cleared_away(tmp_path):
    (tmp_path / ".out.abcd.part").mkdir()
    (tmp_path / ".out.abcd.part" / "old").write_text("half")
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["a"]


def test_two_at_once_do_not_disturb_each_other_and_the_second_is_refused(tmp_path):
    first, second = (new_folder(tmp_path / "out") for _ in range(2))
    with pytest.raises(FileExistsError, match="written by another process meanwhile"), second as b:
        with first as a:
            for number, folder in enumerate((a, b)):
                (folder / "a").write_text(str(number))
        (b / "b").write_text("1")
    assert (tmp_path / "out" / "a").read_text() == "0"
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["a"]


def test_of_two_that_may_replace_the_last_stays_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")
    first, second = (new_folder(tmp_path / "out", replace=True) for _ in range(2))
    with second as b, first as a:
        (a / "a").write_text("1")
        (b / "b").write_text("2")
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["b"]


def test_a_file_is_written_whole_or_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    write_text(path, "old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="its disk is full"):
        write_text(path, "new and longer")
    assert path.read_text() == "old"
    assert [one.name for one in tmp_path.iterdir()] == ["page.html"]


def test_half_a_surrogate_pair_can_be_written(tmp_path):
    write_text(tmp_path / "page.html", "a \ud83d b")
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == "a ? b"


def test_a_full_disk_is_named_with_the_file(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"config.json was not written, its disk is full"):
        write_text(tmp_path / "config.json", "{}")


def test_an_error_names_the_file_that_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        write_text(tmp_path / "missing" / "config.json", "{}")
    assert error.value.filename == str(tmp_path / "missing" / "config.json")
