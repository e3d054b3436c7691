"""Which files of the cache folder processes of this machine use, by the system's locks on them.

The system drops a lock when its process ends, however it ends. Where the file system has no locks,
nothing counts as unused.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
from collections.abc import Callable, Iterator

HELD: dict[pathlib.Path, int] = {}  # what this process uses, with the lock's handle


def hold(path: pathlib.Path) -> None:
    """Marks a file, which is created if it does not exist, as in use while this process lives."""
    if path in HELD:
        if _is_at(HELD[path], path):
            return
        os.close(HELD.pop(path))
    HELD[path] = _open(path)
    with contextlib.suppress(OSError):
        fcntl.flock(HELD[path], fcntl.LOCK_SH)


@contextlib.contextmanager
def unused(path: pathlib.Path) -> Iterator[None]:
    """Keeps others from holding a file that nobody holds.

    Raises:
      OSError: a process holds it, it is another user's, or there are no locks.
    """
    handle = _open(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def alone(path: pathlib.Path, waits: Callable[[], None] = lambda: None) -> Iterator[None]:
    """One process at a time; a file system without locks admits all.

    Args:
      path: a file, which is created.
      waits: called where another process is there first.

    Raises:
      OSError: the file cannot be created.
    """
    handle = _open(path)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waits()
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _open(path: pathlib.Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o644)


def _is_at(handle: int, path: pathlib.Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
