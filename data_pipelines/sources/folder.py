"""Pictures in a folder with a JSONL file of texts, the layout of Hugging Face's `imagefolder`."""

from __future__ import annotations

import functools
import json
import os
import pathlib
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.decoding import load_image, shown
from data_pipelines.examples import Example
from data_pipelines.faults import SourceError, patiently
from data_pipelines.sources.index import Kept
from data_pipelines.sources.lines import check_start
from data_pipelines.sources.rows import IMAGE_KEYS, example_of, parse_row, read_named
from data_pipelines.sources.traits import TRAITS
from unicom_jax.core.paths import as_path, is_remote, open_binary, read_range

KIND = "lines-1"  # the version of what `_lines` finds
LISTS = ("captions.jsonl", "metadata.jsonl")  # looked for in this order
_HAS_TRAITS = re.compile(b'"(%s)"' % "|".join(TRAITS).encode())


class FolderSource:
    """Random access to the pictures of a folder, for `grain.MapDataset.source`.

    The folder holds `captions.jsonl` (or `metadata.jsonl`), with one JSON object per line in the
    layout of `sources.rows`, each with a picture and a caption. Other columns are ignored, since
    such files often have more than texts.

    The offsets of lines are stored and memory-mapped (`sources.index`); a line is read, and its
    errors are found, on access.

    Args:
      path: the folder; "~" is the home directory.
      read: path of a picture -> what an `Example` holds for it; `decoding.load_file` keeps files.

    Raises:
      SourceError: the folder or its list is missing, or the list is empty or not of UTF-8 lines; on
        access: the disk or the network fails.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        read: Callable[[pathlib.Path], np.ndarray | bytes] = load_image,
    ) -> None:
        self.path, self._read = as_path(path).expanduser(), read
        self.list = self._find_list()
        self._lines = Kept(str(self.list), KIND, lambda: _lines(self.list))
        if not len(self):
            raise SourceError(
                f"{shown(self.list)}: no line with a picture: add one JSON object a line"
            )

    def __len__(self) -> int:
        return len(self._lines.array) // 2

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r}: index {index} is not in [0, {len(self)})")
        where = f"{shown(self.list)} line {int(self._lines.array[len(self) + index])}"
        row = parse_row(patiently(lambda: self.line(index), where), where)
        return self._content(row, where)

    def traits(self) -> np.ndarray:
        """(N,) uint8 traits, from one pass over the list; pictures are not opened."""
        found = np.zeros(len(self), np.uint8)
        with open_binary(self.list) as file:
            lines = (line for line in file if line.strip())
            for index, line in enumerate(lines):
                if _HAS_TRAITS.search(line):  # most lines of most lists do not: no need to parse
                    found[index] = _line_traits(line)
        return found

    def __repr__(self) -> str:
        return f"FolderSource({shown(self.list)})"

    def first_picture(self, row: Mapping[str, Any]) -> str:
        """The file of a row's first picture. Raises StopIteration if it has none."""
        return next(row[key] for key in IMAGE_KEYS if row.get(key) is not None)

    def _find_list(self) -> pathlib.Path:
        return find_list(self.path, LISTS, '{"file_name": "cat.jpg", "text": "a cat"}')

    def line(self, index: int) -> bytes:
        """The line of a row, as stored in the list."""
        start = int(self._lines.array[index])
        if is_remote(self.list):
            stop = self._lines.array[index + 1] if index + 1 < len(self) else self._lines.array[-1]
            return read_range(self.list, start, int(stop))
        with open_binary(self.list) as file:
            file.seek(start)
            return file.readline()

    def _content(self, row: Mapping[str, Any], where: str) -> Example:
        read = functools.partial(read_named, self.path, self._read)
        return example_of(row, where, read, complete=True)


def _line_traits(line: bytes) -> int:
    """The traits that a line seems to have; its errors are reported when it is read."""
    try:
        row = json.loads(line)
        return sum(value for name, value in TRAITS.items() if row.get(name))
    except (ValueError, AttributeError, RecursionError):
        return 0


def find_list(path: pathlib.Path, names: Sequence[str], line: str) -> pathlib.Path:
    """The first of the files `names` that exists in a folder.

    Args:
      line: an example line of such a file, for the message.

    Raises:
      SourceError: the folder or its list is missing.
    """
    if not path.is_dir():
        raise SourceError(f"{shown(path)}: no such folder: check the path")
    for name in names:
        if (path / name).is_file():
            return path / name
    neither = "holds neither " if len(names) > 1 else "has no "
    raise SourceError(
        f"{shown(path)}: {neither}{' nor '.join(names)}: write {names[0]} with lines like {line}"
    )


def _lines(path: pathlib.Path) -> np.ndarray:
    """(2 n + 1,) uint64: byte offsets of the n lines that are not blank, their numbers from 1, and
    the file's size."""
    numbers, offsets, offset = array("Q"), array("Q"), 0
    with open_binary(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                check_start(path, line)
            if line.strip():
                numbers.append(number)
                offsets.append(offset)
            offset += len(line)
    parts = (np.frombuffer(part, np.uint64) for part in (offsets, numbers))
    return np.append(np.concatenate(tuple(parts)), np.uint64(offset))
