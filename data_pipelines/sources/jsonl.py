"""JSONL files whose lines name pictures by their paths, in the layouts of `sources.rows`."""

from __future__ import annotations

import functools
import os
import re

import numpy as np

from data_pipelines.decoding import load_image, shown
from data_pipelines.examples import Example
from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sources.files import Paths, described
from data_pipelines.sources.index import Scan
from data_pipelines.sources.lines import Lines, scan_lines
from data_pipelines.sources.rows import ReadImage, example_of, parse_row, read_named, traits_of_row
from data_pipelines.sources.traits import TRAITS
from unicom_jax.core.paths import Path, as_path

KIND = "rows-2"  # the version of what `_scan` finds
# A line with a picture, a caption and nothing else need not be parsed to know its traits.
_MORE = re.compile(b'"(%s|conversations)"|null|""|\\[\\]' % "|".join(TRAITS).encode())
_IMAGE = re.compile(rb'"(file_name|image)"\s*:')
_CAPTION = re.compile(rb'"(captions|caption|text)"\s*:')


class JsonlSource:
    """Random access to the rows of JSONL files, for `grain.MapDataset.source`.

    A row may lack a picture or captions; tasks that need them then do not use it.

    Args:
      paths: a file, a folder (all its *.jsonl), a glob or a brace pattern, or a list of these.
      images: the folder that the names of pictures are relative to; "": that of their JSONL file.
      read: path of a picture -> what an `Example` holds for it.
    """

    may_lack = True

    def __init__(
        self, paths: Paths, images: str | os.PathLike = "", read: ReadImage = load_image
    ) -> None:
        self.images = picture_folder(images)
        self._lines, self._read = Lines(paths, (".jsonl",), KIND, _scan), read
        self.paths = self._lines.paths

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Example:
        path, line, _, where = self._lines[index]
        folder = self.images or as_path(path).parent
        read = functools.partial(read_named, folder, self._read)
        return example_of(parse_row(line, where), where, read)

    def traits(self) -> np.ndarray:
        """(N,) uint8 traits, as they were when the files were scanned."""
        return self._lines.traits()

    def __repr__(self) -> str:
        return described("JsonlSource", self.paths)


def picture_folder(images: str | os.PathLike) -> Path | None:
    """The folder that names of pictures are relative to; None: that of the file with the names.

    Raises:
      SourceError: there is no such folder.
    """
    folder = as_path(images).expanduser() if images else None
    if folder is not None and not folder.is_dir():
        raise SourceError(f"{shown(folder)}: no such folder: check data.source.images")
    return folder


def _scan(path: str) -> Scan:
    first = True

    def records(line: bytes) -> bytes:
        nonlocal first
        if first and line.lstrip().startswith(b"["):
            raise SourceError(
                f"{shown(path)}: one JSON array, not an object a line: convert it, for example "
                "with jq -c '.[]'"
            )
        first = False
        return bytes([_traits(line)])

    return scan_lines(path, records)


def _traits(line: bytes) -> int:
    if _IMAGE.search(line) and _CAPTION.search(line) and not _MORE.search(line):
        return 0
    try:
        return traits_of_row(parse_row(line, ""))
    except RecordError:  # the reason is reported when the record is read
        return 0
