"""Folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which becomes `target` when the block ends without an error.

    Until then it is a hidden sibling of `target`, on the same file system; an error (an interrupt
    too) removes it. Its files are on the disk before it gets its name. Only a process that is
    killed leaves the sibling behind, `.NAME.part`, and the next attempt clears it away.

    Args:
      replace: a folder that is at `target` already stays until the new one is complete, and then
        goes. Between two renames it is called `.NAME.old`.

    Raises:
      FileExistsError: there is something at `target` already, other than an empty folder or one
        that may be replaced.
      OSError: the disk is full; nothing is left behind.
    """
    target = Path(os.path.abspath(target))
    may_go = _is_empty(target) or (replace and target.is_dir())
    if target.is_symlink() or (target.exists() and not may_go):
        raise FileExistsError(f"{target} is there already; name a new or empty folder")
    part, old = (target.with_name(f".{target.name}.{end}") for end in ("part", "old"))
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        yield part
        for path in sorted(part.rglob("*")):
            _sync(path)
        _sync(part)
        if target.exists() and not _is_empty(target):
            shutil.rmtree(old, ignore_errors=True)
            target.replace(old)
        part.replace(target)  # takes the place of an empty folder
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        if old.exists() and not target.exists():
            old.replace(target)
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise OSError(
                f"{target} was not written, its disk is full; free some space or name a folder on "
                "another disk"
            ) from error
        raise


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _sync(path: Path) -> None:
    """Waits until a file's contents or a folder's names are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file that is there whole, or as it was before.

    What UTF-8 cannot say (half of a surrogate pair) becomes "?".

    Raises OSError when the disk is full; nothing is left behind.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
