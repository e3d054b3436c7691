"""One writer for each workdir."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys

import pytest

from unicom_jax.runs import lock
from unicom_jax.runs.lock import NAME, STALE, LockedError, workdir_lock

HOLD = """
import sys, time
from pathlib import Path
from unicom_jax.runs.lock import workdir_lock
with workdir_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path / "run"`."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_the_holder_is_named(holder, tmp_path):
    words = f"is in use by process {holder.pid} on .* since 2"
    with pytest.raises(LockedError, match=words) as error, workdir_lock(tmp_path / "run"):
        pass
    assert "\n" not in str(error.value)


def test_the_lock_of_a_killed_process_is_taken_over(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with workdir_lock(tmp_path / "run"):
        held = json.loads((tmp_path / "run" / NAME).read_text(encoding="utf-8"))
        assert held["process"] == os.getpid()


def write_holder(folder, host, age):
    folder.mkdir()
    (folder / NAME).write_text(
        json.dumps({"host": host, "process": 1, "since": "2026"}), encoding="utf-8"
    )
    then = (folder / NAME).stat().st_mtime - age
    os.utime(folder / NAME, (then, then))


def test_a_holder_on_another_host_counts_while_it_gives_signs_of_life(tmp_path):
    write_holder(tmp_path / "run", "elsewhere", age=STALE / 4)
    refused = pytest.raises(LockedError, match="process 1 on elsewhere")
    with refused, workdir_lock(tmp_path / "run"):
        pass


def test_where_the_file_system_has_no_locks_signs_of_life_decide(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(lock.fcntl, "lockf", unsupported)
    refused = pytest.raises(LockedError, match=f"process {os.getpid()}")
    with workdir_lock(tmp_path), refused, workdir_lock(tmp_path):
        pass
    with workdir_lock(tmp_path):
        pass


def test_a_holder_on_another_host_that_is_silent_is_stale(tmp_path):
    write_holder(tmp_path / "run", "elsewhere", age=2 * STALE)
    with workdir_lock(tmp_path / "run"):
        pass


def test_the_lock_is_free_again_after_use_and_after_an_error(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError), workdir_lock(tmp_path / "run"):
            (tmp_path / "run" / "config.json").touch()
            raise RuntimeError
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_folder_that_an_error_left_empty_is_gone_again(tmp_path):
    with pytest.raises(RuntimeError), workdir_lock(tmp_path / "run"):
        raise RuntimeError
    assert not (tmp_path / "run").exists()


def test_a_damaged_lock_file_is_taken_over(tmp_path):
    (tmp_path / NAME).write_text('{"host": ', encoding="utf-8")
    with workdir_lock(tmp_path):
        pass


def test_a_folder_that_can_only_be_read_needs_no_lock(tmp_path, monkeypatch):
    def read_only(*arguments):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(lock.os, "open", read_only)
    with workdir_lock(tmp_path):
        assert not any(tmp_path.iterdir())
