"""An index of where the records of large files begin: built once, kept on disk, memory-mapped.

An index has one 8-byte entry per record: its offset in its file (56 bits) and its traits (8 bits),
so 100 million records take 800 MB on disk. Worker processes share the pages that they touch.

The entries of each file are kept beside it, in the hidden file `.NAME.KIND-STAMP.npy`, or in the
user's cache folder if the file's folder is not writable. STAMP is a hash of the file's size and
modification time: after a change the old index is not found, and the file is scanned again. A
source of several files maps one joined index, which is kept in the cache folder. The index of a
file in an object store is kept both there and in the cache folder, from which it is mapped.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import logging
import os
import pathlib
import threading
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from data_pipelines.decoding import shown
from data_pipelines.faults import SourceError, patiently
from unicom_jax.core.paths import (
    Path,
    absolute,
    as_path,
    asking,
    cache_folder,
    copy_file,
    filesystem,
    is_remote,
)

LOG = logging.getLogger(__name__)
SCANNERS = 8  # files that are scanned at once
TRAIT_BITS = np.uint64(56)
PLACE = np.uint64(2**56 - 1)
INDICES = "indices"  # in the cache folder: those that cannot be kept beside their files
CHUNK = 2**22  # entries processed at once


class Scan(NamedTuple):
    """What one pass over a file finds.

    Attributes:
      places: (n + 1,) ascending; record i is at places[i], and places[n] is the end.
      traits: (n,) uint8 (`sources.traits`).
    """

    places: np.ndarray
    traits: np.ndarray


class Place(NamedTuple):
    """A record: the number of its file, its number in the file, and its start and end there."""

    file: int
    local: int
    start: int
    stop: int


class Index:
    """The places of all records of some files. Is pickled without its entries.

    Args:
      paths: the files.
      kind: names the layout and its version, and anything else that affects what `scan` finds.
      scan: one pass over a file.

    Raises:
      SourceError: a file cannot be read, `scan` fails, or there is no record at all.
    """

    def __init__(self, paths: Sequence[str], kind: str, scan: Callable[[str], Scan]) -> None:
        self.paths = list(paths)
        self._entries, self._stops, self._file = _open(self.paths, kind, scan)
        if not len(self):
            raise SourceError(f"{shown(self.paths[0])}: no records: check the path")

    def __len__(self) -> int:
        return int(self._stops[-1])

    def __getitem__(self, index: int) -> Place:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} is not in [0, {len(self)})")
        file = int(np.searchsorted(self._stops, index, side="right"))
        local = index - self._first(file)
        start, stop = self.places(file)[local : local + 2] & PLACE
        return Place(file, local, int(start), int(stop))

    def whole(self, index: int) -> tuple[Place, int, int]:
        """(place, number among the records that begin at the same offset, start of the first record
        at a later offset), for records that are parts of one line.
        """
        place = self[index]
        entries = self.places(place.file)
        first = last = place.local
        while first and int(entries[first - 1] & PLACE) == place.start:
            first -= 1
        while int(entries[last] & PLACE) == place.start:
            last += 1
        return place, place.local - first, int(entries[last] & PLACE)

    def places(self, file: int) -> np.ndarray:
        """The entries of a file: one per record, and its end."""
        first = self._first(file)
        return self._entries[first + file : int(self._stops[file]) + file + 1]

    def _first(self, file: int) -> int:
        return int(self._stops[file - 1]) if file else 0

    def traits(self) -> np.ndarray:
        """(N,) uint8 traits of the records."""
        found = np.empty(len(self), np.uint8)
        for file in range(len(self.paths)):
            entries, first = self.places(file)[:-1], self._first(file)
            for start in range(0, len(entries), CHUNK):
                part = entries[start : start + CHUNK]
                found[first + start : first + start + len(part)] = part >> TRAIT_BITS
        return found

    def __getstate__(self) -> dict:
        state = dict(self.__dict__)
        if self._file is not None:
            del state["_entries"]
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            self._entries = mapped(self._file)


class Kept:
    """An array of numbers that is computed from a file once, stored, and memory-mapped. Is pickled
    without its content.

    Args:
      path, kind: as of `Index`.
      make: computes it, uint64 and not empty; the last number is not 0.
    """

    def __init__(self, path: str, kind: str, make: Callable[[], np.ndarray]) -> None:
        self.array, self._file = _kept(path, kind, _stamp(path), make)

    def __getstate__(self) -> dict:
        return {"_file": self._file} if self._file else dict(self.__dict__)

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if self._file is not None:
            self.array = mapped(self._file)


def kept(path: str, kind: str, length: int, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The (length,) array that `make()` returns for a file, memory-mapped if it is stored."""
    found = _kept(path, kind, _stamp(path), make)[0]
    return found if len(found) == length else make()  # the stored one is damaged


def _open(
    paths: list[str], kind: str, scan: Callable[[str], Scan]
) -> tuple[np.ndarray, np.ndarray, pathlib.Path | None]:
    """(entries, records up to the end of each file, where the entries are mapped from)."""
    stamps = [_stamp(path) for path in paths]

    def entries(number: int) -> tuple[np.ndarray, pathlib.Path | None]:
        path = paths[number]
        found, file = _kept(path, kind, stamps[number], lambda: _pack(scan(path), path))
        # The end of a file without records may be 0, which in the last place means damage.
        return (found, file) if len(found) > 1 else (np.array([PLACE]), None)

    if len(paths) == 1:
        found, file = entries(0)
        return found, np.array([len(found) - 1]), file
    name = short_hash(kind, *map(absolute, paths))
    joined = cache_folder(INDICES) / f"{name}-{short_hash(*stamps)}.npy"
    counts = joined.with_suffix(".counts.npy")
    with contextlib.suppress(OSError, ValueError, EOFError):
        found, stops = mapped(joined), np.cumsum(np.load(counts))
        if len(stops) == len(paths) and len(found) == int(stops[-1]) + len(paths):
            return found, stops, joined
    with ThreadPoolExecutor(SCANNERS) as pool:
        sizes = list(pool.map(lambda number: len(entries(number)[0]) - 1, range(len(paths))))
    stops, parts = np.cumsum(sizes), lambda: (entries(number)[0] for number in range(len(paths)))
    length = int(stops[-1]) + len(paths)
    if not (store(counts, len(sizes), [np.array(sizes)]) and store(joined, length, parts())):
        return np.concatenate(list(parts())), stops, None
    _remove(joined.parent, f"{name}-*.npy", (joined, counts))
    return mapped(joined), stops, joined


def _pack(found: Scan, path: str) -> np.ndarray:
    places = np.asarray(found.places, np.uint64)
    if len(places) and places[-1] > PLACE:
        raise SourceError(f"{shown(path)}: larger than 2^56 bytes: split it")
    traits = np.append(np.asarray(found.traits, np.uint64), np.uint64(0))
    return places | (traits << TRAIT_BITS)


def _kept(
    path: str, kind: str, stamp: str, make: Callable[[], np.ndarray]
) -> tuple[np.ndarray, pathlib.Path | None]:
    beside = as_path(path).with_name(f".{as_path(path).name}.{kind}-{stamp}.npy")
    cached = cache_folder(INDICES) / f"{short_hash(absolute(path))}.{kind}-{stamp}.npy"
    if is_remote(path):
        return _kept_in_store(path, beside, cached, make)
    for file in (beside, cached):
        with contextlib.suppress(OSError, ValueError, EOFError):
            return mapped(file), file
    LOG.info("%s: reading it once to learn where its records are", shown(path))
    made = make()
    for file in (beside, cached):
        if store(file, len(made), [made]):
            _remove(file.parent, f"{glob.escape(file.name[: -len(stamp + '.npy')])}*.npy", (file,))
            return mapped(file), file
    LOG.warning("%s: its index cannot be stored; every start reads the file again", shown(path))
    return made, None


def _kept_in_store(
    path: str, beside: Path, cached: pathlib.Path, make: Callable[[], np.ndarray]
) -> tuple[np.ndarray, pathlib.Path | None]:
    """The index of a file in a store. It is mapped from the cache folder, and also kept beside the
    file if the store is writable, so that other machines need not scan the file."""
    with contextlib.suppress(OSError, ValueError, EOFError):
        return mapped(cached), cached
    with contextlib.suppress(OSError, ValueError, EOFError):
        copy_file(beside, cached)
        return mapped(cached), cached
    LOG.info("%s: reading it once to learn where its records are", shown(path))
    made = make()
    if not store(cached, len(made), [made]):
        return made, None
    with contextlib.suppress(OSError, NotImplementedError):  # the store is read-only
        copy_file(cached, beside)
    return mapped(cached), cached


def _stamp(path: str) -> str:
    if is_remote(path):
        return short_hash(patiently(lambda: _store_stamp(path), shown(path)))
    try:
        found = patiently(lambda: os.stat(path), shown(path))
    except OSError as error:
        raise SourceError(
            f"{shown(path)}: cannot be read ({error.strerror}): check the path"
        ) from error
    return short_hash(str(found.st_size), str(found.st_mtime_ns))


def _store_stamp(path: str) -> str:
    try:
        with asking(path):
            return filesystem(path).ukey(path)
    except FileNotFoundError:
        raise SourceError(f"{shown(path)}: no such file: check the path") from None


def short_hash(*parts: str) -> str:
    """A hash of some texts, 16 hex digits, for the name of a file."""
    joined = "\0".join(parts).encode("utf-8", "surrogateescape")
    return hashlib.sha256(joined).hexdigest()[:16]


# NumPy parses a file's header as Python code. Before 3.11.8 and 3.12.2, Python counts the depth of
# that for all threads together and fails now and then where two of them parse at once
# (python/cpython#106905).
_HEADERS = threading.Lock()


def mapped(file: pathlib.Path) -> np.ndarray:
    """A plain view of a mapped array: slices of `np.memmap` itself are slow.

    Raises:
      ValueError: the file is damaged: it is no array such as `_store` writes, or all zeros, which a
        crash of the machine can leave in place of the content.
    """
    with _HEADERS:
        found = np.asarray(np.load(file, mmap_mode="r"))
    if found.ndim != 1 or not len(found) or found.dtype not in (np.uint64, np.uint8):
        raise ValueError(f"{shown(file)}: not an index")
    if found.dtype == np.uint64 and len(found) > 1 and not found[-1] & PLACE:
        raise ValueError(f"{shown(file)}: an index without places")
    return found


def store(file: pathlib.Path, length: int, parts: Iterable[np.ndarray]) -> bool:
    """Writes (length,) numbers, given in parts of one type; returns whether that succeeded."""
    half = file.with_name(f"{file.name}-{uuid.uuid4().hex}.unfinished")  # others may write it too
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with half.open("wb") as stream:
            for number, part in enumerate(parts):
                if not number:
                    header = {"descr": part.dtype.str, "fortran_order": False, "shape": (length,)}
                    np.lib.format.write_array_header_1_0(stream, header)
                part.tofile(stream)
        half.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)
        return False
    return True


def _remove(folder: pathlib.Path, pattern: str, kept: Iterable[pathlib.Path]) -> None:
    """Removes earlier versions of an index."""
    for file in folder.glob(pattern):
        if file not in tuple(kept):
            with contextlib.suppress(OSError):
                file.unlink()
