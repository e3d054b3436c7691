"""Keeps the most recently used files of a source open for reading, however many it has."""

from __future__ import annotations

import functools
import io
import os
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from data_pipelines.decoding import shown
from data_pipelines.faults import RecordError, patiently, reason_of
from unicom_jax.core.paths import is_remote, read_range

File = TypeVar("File")
MOST_OPEN = 64  # files that a source keeps open for reading


class OpenFiles(Generic[File]):
    """Opens files by number and keeps the latest `MOST_OPEN` of them open. Threads may share it; a
    process that unpickles it opens its own files.

    Args:
      open: number of a file -> the object to read from. It must close itself when it is no longer
        referenced, so that a thread can still read from one that was evicted. Must be picklable.
    """

    def __init__(self, open: Callable[[int], File]) -> None:
        self._make = open
        self._open: dict[int, File] = {}  # the least recently used first
        self._lock = threading.Lock()

    def __getitem__(self, number: int) -> File:
        with self._lock:
            file = self._open.pop(number, None)
            if file is None:
                file = self._make(number)
            self._open[number] = file
            if len(self._open) > MOST_OPEN:
                del self._open[next(iter(self._open))]
        return file

    def forget(self, number: int) -> None:
        """Drops a file that failed, so that the next access reopens it."""
        with self._lock:
            self._open.pop(number, None)

    def __getstate__(self) -> Callable[[int], File]:
        return self._make

    def __setstate__(self, make: Callable[[int], File]) -> None:
        self.__init__(make)


class ByteFiles:
    """Ranges of bytes from some files. Threads may share it; it can be pickled."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = paths
        self._files = OpenFiles(functools.partial(_open_raw, paths))

    def read(self, file: int, start: int, stop: int, where: str) -> bytes:
        """The bytes [start, stop) of a file.

        Raises:
          RecordError: the file is missing, or too short.
          SourceError: the disk or the network fails.
        """
        try:
            data = patiently(lambda: self._read(file, start, stop), where)
        except OSError as error:
            raise RecordError(f"{where}: unreadable ({reason_of(error)}): copy it again") from error
        if len(data) != stop - start:
            raise RecordError(
                f"{where}: {shown(self.paths[file])} ends before byte {stop}: it changed since it "
                "was opened; start again, or copy it again"
            )
        return data

    def _read(self, file: int, start: int, stop: int) -> bytes:
        if is_remote(self.paths[file]):
            return read_range(self.paths[file], start, stop)
        try:
            return _pread(self._files[file], start, stop - start)
        except OSError:
            self._files.forget(file)
            raise


def _open_raw(paths: Sequence[str], number: int) -> io.FileIO:
    return open(paths[number], "rb", buffering=0)


def _pread(file: io.FileIO, start: int, count: int) -> bytes:
    parts = []
    while count and (part := os.pread(file.fileno(), count, start)):
        parts.append(part)
        start, count = start + len(part), count - len(part)
    return b"".join(parts)
