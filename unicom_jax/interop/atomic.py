"""Folders that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` when the block ends without an error.

    Until then it is a hidden sibling of `target`, on the same file system; an error (an interrupt
    too) removes it. Its files are on the disk before it gets its name. Only a process that is
    killed leaves the sibling behind, `.NAME.part`, and the next attempt clears it away.

    Raises:
      FileExistsError: there is something at `target` already, other than an empty folder.
    """
    target = Path(os.path.abspath(target))
    if target.is_symlink() or (target.exists() and not _is_empty(target)):
        raise FileExistsError(f"{target} is there already; name a new or empty folder")
    part = target.with_name(f".{target.name}.part")
    if part.exists():
        shutil.rmtree(part)
    part.mkdir(parents=True)
    try:
        yield part
        for path in sorted(part.rglob("*")):
            _sync(path)
        _sync(part)
        part.replace(target)  # takes the place of an empty folder
        _sync(target.parent)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
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
