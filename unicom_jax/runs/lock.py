"""One writer per workdir: a lock that names its holder and is released when the holder dies.

`WORKDIR/.lock` holds host, process and time. Between processes that share the file system's locks,
a POSIX record lock on the file decides; the system drops it when the process ends. If the file
system has no locks, or only local ones, the age of the file decides: its holder touches it
regularly. For object stores see `store_lock`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from unicom_jax.core.paths import is_remote
from unicom_jax.runs.store_lock import is_held, store_lock

NAME = ".lock"
TOUCH = 20.0  # seconds between two heartbeats
STALE = 120.0  # without a heartbeat for this long, a holder on another host counts as dead
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class LockedError(Exception):
    """Another process writes to the workdir. One line that names it."""


@contextlib.contextmanager
def workdir_lock(
    workdir: Path, lost: Callable[[], None] = lambda: None, name: str = ""
) -> Iterator[None]:
    """Holds the lock of `workdir`, which is created if it does not exist.

    A read-only folder has no lock, as nobody can write there. A folder that was created here and is
    left empty by an error is removed again.

    Args:
      lost: called, on a thread, if the workdir is in a store and another process has taken the lock
        over, because this one gave no sign of life.
      name: as of `is_taken_over`.

    Raises:
      LockedError: another process holds the lock.
    """
    if is_remote(workdir):
        path, refuse = workdir / NAME, lambda holder: LockedError(_message(workdir, holder))
        with store_lock(path, refuse, lost, name):
            yield
        return
    made = not workdir.exists()
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / NAME
    handle = _take(path)
    stop = threading.Event()
    if handle is not None:
        threading.Thread(target=_touch, args=(path, stop), daemon=True).start()
    try:
        yield
    finally:
        stop.set()
        if handle is not None:
            with contextlib.suppress(OSError):
                path.unlink()
                if made and not any(workdir.iterdir()):
                    workdir.rmdir()
            os.close(handle)


def is_locked(workdir: Path) -> bool:
    """Whether a process holds the lock of `workdir`, as far as can be seen."""
    if is_remote(workdir):
        return is_held(workdir / NAME)
    if not workdir.is_dir():
        return False
    try:
        with workdir_lock(workdir):
            return False
    except LockedError:
        return True


def is_taken_over(workdir: Path, name: str) -> bool:
    """Whether `workdir` is in a store and its lock, which a holder of that `name` had, is now held
    by another process."""
    return is_remote(workdir) and is_held(workdir / NAME, but_for=name)


def _take(path: Path) -> int | None:
    """A handle that holds the lock; None in a read-only folder."""
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            return None
        try:
            _lock(handle, path)
            # The last holder may have removed the file after it was opened here.
            if _is_at(path, handle):
                _sign(handle)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _lock(handle: int, path: Path) -> None:
    locks = True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise LockedError(_message(path.parent, _holder(handle))) from None
        if error.errno not in NO_LOCKS:
            raise
        locks = False
    holder = _holder(handle)
    elsewhere = not locks or holder.get("host") != socket.gethostname()
    if holder and elsewhere and _age(path) < STALE:
        raise LockedError(_message(path.parent, holder))


def _sign(handle: int) -> None:
    about = {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }
    with contextlib.suppress(OSError):  # on a full disk the lock works, but names no holder
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps(about).encode(), 0)


def _holder(handle: int) -> dict[str, Any]:
    try:
        found = json.loads(os.pread(handle, 4096, 0))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _message(workdir: Path, holder: dict[str, Any]) -> str:
    who = "another process"
    if holder:
        who = f"process {holder.get('process')} on {holder.get('host')}"
        who += f" since {holder.get('since')}"
    return f"{workdir} is in use by {who}; wait until it ends, stop it, or use another folder"


def _age(path: Path) -> float:
    """Seconds since the last heartbeat, by the clock of the file system."""
    with tempfile.TemporaryFile(dir=path.parent) as now:
        now.write(b"x")
        now.flush()
        return os.fstat(now.fileno()).st_mtime - path.stat().st_mtime


def _touch(path: Path, stop: threading.Event) -> None:
    while not stop.wait(TOUCH):
        with contextlib.suppress(OSError):
            os.utime(path)
