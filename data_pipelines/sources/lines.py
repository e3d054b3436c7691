"""Random access to the lines of large text files. Blank lines do not count."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable

import numpy as np

from data_pipelines.decoding import shown
from data_pipelines.faults import SourceError, patiently, reason_of
from data_pipelines.sources.files import Paths, find_files
from data_pipelines.sources.index import Index, Scan
from data_pipelines.sources.open_files import ByteFiles
from unicom_jax.core.paths import LFS, open_binary

# gzip, zstd, bzip2, xz, zip
COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"PK\x03\x04")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


class Lines:
    """The records of some files, each a line or a part of one. Can be pickled.

    Args:
      paths: a file, a folder, a glob or a brace pattern, or a list of these.
      suffixes: those of the files to use from a folder.
      kind: that of the index (`sources.index`).
      scan: one pass over a file, by `scan_lines`.
    """

    def __init__(
        self, paths: Paths, suffixes: tuple[str, ...], kind: str, scan: Callable[[str], Scan]
    ) -> None:
        self.paths = find_files(paths, suffixes, "check the path")
        self._index = Index(self.paths, kind, scan)
        self._files = ByteFiles(self.paths)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> tuple[str, bytes, int, str]:
        """(file, line, the record's number in its line, the record's name for messages)."""
        place, part, stop = self._index.whole(index)
        path = self.paths[place.file]
        where = f"{shown(path)} record {place.local + 1}"
        return path, self._files.read(place.file, place.start, stop, where).strip(), part, where

    def traits(self) -> np.ndarray:
        """(N,) uint8 traits of the records."""
        return self._index.traits()


def scan_lines(path: str, records: Callable[[bytes], bytes]) -> Scan:
    """One pass over a file.

    Args:
      records: a line -> the traits of each record that it holds; most hold one.

    Raises:
      SourceError: it cannot be read, or `check_start` refuses it.
    """
    try:
        return patiently(lambda: _scan(path, records), shown(path))
    except OSError as error:
        raise SourceError(
            f"{shown(path)}: cannot be read ({reason_of(error)}): copy it again"
        ) from error


def check_start(path: str | os.PathLike, start: bytes) -> None:
    """Raises a SourceError if a file that begins with `start` does not hold lines of UTF-8."""
    if start.startswith(COMPRESSED):
        raise SourceError(
            f"{shown(path)}: compressed, so single lines cannot be read: decompress it first"
        )
    if start.startswith(UTF_16):
        raise SourceError(
            f"{shown(path)}: UTF-16 text: convert it to UTF-8, for example with iconv -f UTF-16 "
            "-t UTF-8"
        )
    if start.startswith(LFS.encode()):
        raise SourceError(f"{shown(path)}: a pointer of Git LFS: run git lfs pull")


def _scan(path: str, records: Callable[[bytes], bytes]) -> Scan:
    starts, traits, offset = array("Q"), bytearray(), 0
    with open_binary(path) as file:
        for line in file:
            if not offset:
                check_start(path, line)
            if line.strip():
                found = records(line)
                starts.extend([offset] * len(found))
                traits += found
            offset += len(line)
    places = np.append(np.frombuffer(starts, np.uint64), np.uint64(offset))
    return Scan(places, np.frombuffer(bytes(traits), np.uint8))
