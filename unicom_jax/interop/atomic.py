"""Files and folders that are written atomically: complete, or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from unicom_jax.core.paths import as_path, is_remote, upload

PART = ".part"
LAST = ("config.json", "tokenizer.json", "records.json")  # a folder without them is not ours


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a UTF-8 file such that at every moment either the old or the new one exists.

    A sibling `.NAME.PID.part` is filled, synced to disk and renamed; an error removes it. What
    UTF-8 cannot encode (half of a surrogate pair) becomes "?".
    """
    write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """As `write_text`, for bytes. In a store a file is replaced when its upload is complete."""
    if is_remote(path):
        as_path(path).write_bytes(content)
        return
    path = Path(path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        _sync(part)
        part.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename:
            error.filename = os.fspath(path)  # not the name of the temporary file
        _explain_full_disk(path, error)
        raise


@contextlib.contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill, which becomes `target` when the block ends without an error.

    Until then it is a hidden sibling of `target` on the same file system, with a unique name
    (`.NAME.xxxxxxxx.part`), so that two processes can write at once. An error or an interrupt
    removes it. Its files are synced to disk before it gets its name. Only a killed process leaves
    the sibling behind; the process held a lock on it, and the next attempt removes siblings whose
    lock is free. A store cannot rename, so there it is a temporary folder on this machine that is
    uploaded at the end, `LAST` after all other files; other files of a replaced folder are removed.

    Args:
      replace: a folder that exists at `target` stays until the new one is complete, and is then
        removed. Between two renames its name is that of the new one with the ending `.old`.

    Raises:
      FileExistsError: something exists at `target` that is neither an empty folder nor one that may
        be replaced, or another process has created it in the meantime.
      OSError: the disk is full; nothing is left behind.
    """
    if is_remote(target):
        with _new_store_folder(as_path(target), replace) as part:
            yield part
        return
    target = Path(os.path.abspath(target))
    may_go = _is_empty(target) or (replace and target.is_dir())
    if target.is_symlink() or (target.exists() and not may_go):
        raise FileExistsError(f"{target} already exists; name a new or empty folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    part, lock = _new_part(target)
    old = part.with_suffix(".old")
    try:
        yield part
        for path in sorted(part.rglob("*")):
            _sync(path)
        _sync(part)
        if replace and target.exists() and not _is_empty(target):
            with contextlib.suppress(FileNotFoundError):  # another process has just moved it
                target.replace(old)
        try:
            part.replace(target)  # also replaces an empty folder
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            raise FileExistsError(
                f"{target} was written by another process meanwhile; name a new folder"
            ) from error
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException as error:
        if old.exists() and not target.exists():
            old.replace(target)
        shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(part, ignore_errors=True)
        _explain_full_disk(target, error)
        raise
    finally:
        os.close(lock)


@contextlib.contextmanager
def _new_store_folder(target: Path, replace: bool) -> Iterator[Path]:
    if target.is_file() or (target.is_dir() and not replace):
        raise FileExistsError(f"{target} already exists; name a new or empty folder")
    old = set(target.files())
    with tempfile.TemporaryDirectory(prefix="unicom-upload-") as folder:
        part = Path(folder, target.name)
        part.mkdir()
        try:
            yield part
        except OSError as error:
            _explain_full_disk(Path(folder), error)
            raise
        upload(part, target, LAST)
        for name in old - {str(path.relative_to(part)) for path in part.rglob("*")}:
            (target / name).unlink(missing_ok=True)


def _explain_full_disk(target: Path, error: BaseException) -> None:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        raise OSError(
            f"{target} was not written, its disk is full; free some space or name a folder on "
            "another disk"
        ) from error


def _new_part(target: Path) -> tuple[Path, int]:
    """A new sibling of `target`, and the handle that locks it for as long as this process lives."""
    while True:
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PART, dir=target.parent))
        with contextlib.suppress(FileNotFoundError):  # removed as abandoned: make another
            part.chmod(0o777 & ~_umask())
            handle = os.open(part, os.O_RDONLY)
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)
            if part.exists():
                return part, handle
            os.close(handle)


def _remove_abandoned(target: Path) -> None:
    """Removes what killed attempts at `target` left behind: folders that no process locks."""
    for part in target.parent.glob(f".{glob.escape(target.name)}.*{PART}"):
        try:
            handle = os.open(part, os.O_RDONLY)
        except OSError:  # removed in the meantime
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(part, ignore_errors=True)
        except OSError:  # in use, or a file system without locks
            continue
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _sync(path: Path) -> None:
    """Waits until a file's contents or a folder's entries are written to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
