"""Copies on this machine of files in object stores, for libraries that read only local files.

    ~/.cache/unicom_jax/copies/FOLDER/VERSION/...      ($XDG_CACHE_HOME in place of ~/.cache)

FOLDER stands for the folder in the store, VERSION for some files there and their state, so a copy
is never changed while it is read: a changed file makes another version, with hard links to the
files that are the same. Files are copied once and shared by all runs and workers of the machine.
Each gets its name when it is complete, so a copy that was interrupted is continued. A copy can be
deleted at any time that no run reads it.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import errno
import fnmatch
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from data_pipelines.decoding import shown
from data_pipelines.faults import SourceError, patiently, reason_of, unreadable
from data_pipelines.sources.in_use import alone, hold, unused
from data_pipelines.sources.index import short_hash
from unicom_jax.core.paths import (
    COPIES_AT_ONCE,
    as_path,
    asking,
    cache_folder,
    filesystem,
    is_remote,
)

COPIES = "copies"  # in the cache folder
RESERVE = 2**30  # bytes of the disk that stay free
IN_USE, LOCK, PART, STAMPS = ".in_use", ".lock", ".part", ".stamps.json"
LOG = logging.getLogger(__name__)

About = Mapping[str, Mapping[str, Any]]  # by name in the folder: what fsspec knows of a file


def local_folder(path: str | os.PathLike, needs: str = "") -> str:
    """The folder itself, or a copy of all that is in it if it is in a store.

    Args:
      needs: pattern of names of which a folder in a store must have one, so that a wrong one is not
        copied.

    Raises:
      SourceError: there is no such folder, or its copy has no space on the disk.
    """
    if not is_remote(path):
        return os.fspath(path)
    folder = as_path(path)
    about = patiently(lambda: folder.details(below=True), shown(path))
    if not about:
        raise SourceError(f"{shown(path)}: no such folder: check the path")
    if needs and not fnmatch.filter(about, needs):
        raise SourceError(f"{shown(path)}: holds no {needs}: check data.source.kind and the path")
    return str(_copied(str(folder), about, about))


def local_files(files: Sequence[str], beside: Callable[[str], str] | None = None) -> list[str]:
    """The files themselves, or copies of those in a store, in the same order.

    Args:
      beside: name of a file -> name of another one that is copied with it, where that exists.
    """
    found = {file: file for file in files}
    folders: dict[str, list[str]] = {}
    for file in files:
        if is_remote(file):
            folders.setdefault(str(as_path(file).parent), []).append(as_path(file).name)
    for folder, names in folders.items():
        there = patiently(as_path(folder).details, shown(folder))
        if missing := [name for name in names if name not in there]:
            raise SourceError(f"{folder}/{missing[0]}: no such file: check the path")
        more = [other for name in names if beside and (other := beside(name)) in there]
        about = {name: there[name] for name in (*names, *more)}
        copy = _copied(folder, about, there)
        found |= {f"{folder}/{name}": str(copy / name) for name in names}
    return [found[file if not is_remote(file) else str(as_path(file))] for file in files]


def _copied(address: str, about: About, there: About) -> pathlib.Path:
    """The folder with copies of some files of a folder in a store, where `there` are all files."""
    if strange := [name for name in about if ".." in name.split("/")]:
        raise SourceError(f"{address}/{strange[0]}: no name for a file: rename it")
    folders = {str(parent) for name in about for parent in pathlib.PurePosixPath(name).parents}
    if both := sorted(folders & about.keys()):
        raise SourceError(f"{address}/{both[0]}: is a file and a folder: rename one of them")
    words = re.sub(r"\W+", "_", address)[-40:]
    top = cache_folder(COPIES) / f"{words}-{short_hash(address)}"
    stamps = {name: _stamp(about[name]) for name in sorted(about)}
    folder = top / short_hash(*(f"{name} {stamp}" for name, stamp in stamps.items()))
    if not _missing(about, folder) and not os.access(top, os.W_OK):
        return folder  # in a cache that this user only reads
    with _alone(top, address):
        folder.mkdir(exist_ok=True)
        hold(folder / IN_USE)
        if missing := _missing(about, folder):
            (folder / STAMPS).write_text(json.dumps(stamps), encoding="utf-8")
            missing = [name for name in missing if not _linked(name, about, folder)]
        if missing:
            _fetch(address, {name: about[name] for name in missing}, folder)
        _remove_outdated(top, {name: _stamp(one) for name, one in there.items()})
    return folder


def _missing(about: About, folder: pathlib.Path) -> list[str]:
    return [name for name in about if _size(folder / name) != about[name]["size"]]


def _linked(name: str, about: About, folder: pathlib.Path) -> bool:
    """Takes a file from another version in which it is the same and complete."""
    size, stamp = about[name]["size"], _stamp(about[name])
    for other in folder.parent.iterdir():
        if other != folder and _size(other / name) == size and _stamps(other).get(name) == stamp:
            with contextlib.suppress(OSError):  # a file system without links
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).unlink(missing_ok=True)
                os.link(other / name, folder / name)
                return True
    return False


def _stamps(folder: pathlib.Path) -> dict[str, str]:
    """The stamps of the files of a version; {}: it is damaged."""
    try:
        found = json.loads((folder / STAMPS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _fetch(address: str, about: About, folder: pathlib.Path) -> None:
    nbytes = sum(one["size"] for one in about.values())
    free = shutil.disk_usage(folder).free
    if nbytes > free - RESERVE:
        raise SourceError(
            f"{shown(address)}: a copy on this machine needs {nbytes / 2**20:,.0f} MiB, and the "
            f"disk of {folder.parent.parent} has {free / 2**20:,.0f} MiB free: delete copies "
            "there, or set XDG_CACHE_HOME to a folder on a larger disk"
        )
    LOG.warning(
        "%s: copying %d file%s, %s MiB, to %s, once for this machine",
        *(shown(address), len(about), "s" * (len(about) > 1), f"{nbytes / 2**20:,.1f}", folder),
    )
    for path in folder.rglob(f".*{PART}"):  # of a process that was killed
        path.unlink(missing_ok=True)

    def fetch(name: str) -> None:
        where, target = f"{address}/{name}", folder / name
        begin = f"{shown(where)}, copied to {folder}"
        try:
            patiently(lambda: _fetch_file(where, about[name], target), begin)
        except OSError as error:  # refused, or removed meanwhile
            raise unreadable(begin, reason_of(error), error.errno) from error

    with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        list(pool.map(fetch, about))


def _fetch_file(address: str, about: Mapping[str, Any], target: pathlib.Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.{os.getpid()}{PART}")
    try:
        with asking(address):
            filesystem(address).get_file(address, str(part))
            now = filesystem(address).info(address)
        if _state(now) != _state(about):  # the copy would be kept for the state before
            raise SourceError(
                f"{shown(address)}: was changed while it was copied: run the same command again "
                "when nothing writes there"
            )
        if _size(part) != about["size"] or not _has_sum(part, about.get("md5Hash")):
            raise OSError(errno.EIO, "its copy is incomplete or damaged", address)
        changed = _changed(about)
        os.utime(part, (changed, changed))
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _has_sum(path: pathlib.Path, md5: str | None) -> bool:
    """Compares with a checksum of Google's; S3's client compares its own."""
    if not md5:
        return True
    with path.open("rb") as file:
        return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode() == md5


def _stamp(about: Mapping[str, Any]) -> str:
    """A text that changes when the file does."""
    return f"{about['size']} {_state(about)[1] or about}"


def _state(about: Mapping[str, Any]) -> tuple[int, Any]:
    """Size of a file, and what its store changes with it; None where there is no such entry."""
    names = ("ETag", "generation", "etag", "blob_id")
    return about["size"], next((about[name] for name in names if about.get(name)), None)


def _changed(about: Mapping[str, Any]) -> float:
    """When a file was changed, where the store says so, in seconds since 1970. Traits that are
    older than their records are not used (`traits.load_traits`)."""
    time = about.get("LastModified") or about.get("updated") or about.get("mtime")
    if isinstance(time, str):
        time = datetime.datetime.fromisoformat(time)
    return time.timestamp() if isinstance(time, datetime.datetime) else 0.0


def _size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


# ---- locks ------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(top: pathlib.Path, address: str) -> Iterator[None]:
    """One process of this machine at a time fills the copies of a folder.

    Raises:
      SourceError: this user cannot write there.
    """
    waits = functools.partial(
        LOG.warning, "%s: another process copies it; waiting for it", shown(address)
    )
    with contextlib.ExitStack() as stack:
        try:
            top.mkdir(parents=True, exist_ok=True)
            stack.enter_context(alone(top / LOCK, waits))
        except OSError as error:
            raise SourceError(
                f"{shown(address)}: cannot be copied to {top} ({reason_of(error)}): set "
                "XDG_CACHE_HOME to a folder that this user can write to"
            ) from error
        yield


def _remove_outdated(top: pathlib.Path, now: Mapping[str, str]) -> None:
    """Removes versions that no process reads and in which a file is not as it is now."""
    for folder in top.iterdir():
        if not folder.is_dir():
            continue
        if all(now.get(name, stamp) == stamp for name, stamp in _stamps(folder).items()):
            continue
        with contextlib.suppress(OSError), unused(folder / IN_USE):
            shutil.rmtree(folder, ignore_errors=True)
