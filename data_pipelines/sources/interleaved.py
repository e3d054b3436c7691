"""Pages of texts and pictures in the layouts of OBELICS and MMC4, as finished documents.

OBELICS (arXiv 2306.16527), rows of Parquet or JSONL files: two lists of equal length, in which
each place holds either a text or a picture:

    {"texts": ["Two cats met.", null, "They became friends."], "images": [null, "cats.jpg", null]}

MMC4 (arXiv 2304.06939), lines of JSONL files: sentences, and for each picture the number of the
sentence that it belongs to, before which it is put:

    {"text_list": ["Two cats met.", "They became friends."],
     "image_info": [{"image_name": "cats.jpg", "matched_text_index": 1}]}
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.decoding import load_image, shown
from data_pipelines.faults import RecordError, SourceError
from data_pipelines.segments import DRAWN, UNDERSTOOD, FinishedDocument, Image, Segment, Text
from data_pipelines.sources.checks import check_segments
from data_pipelines.sources.columns import Columns
from data_pipelines.sources.files import Paths, described, find_files
from data_pipelines.sources.index import Scan
from data_pipelines.sources.jsonl import picture_folder
from data_pipelines.sources.lines import Lines, scan_lines
from data_pipelines.sources.parquet import ParquetTable, picture_of
from data_pipelines.sources.rows import ReadImage, parse_row, read_image
from data_pipelines.sources.traits import DOCUMENT
from unicom_jax.core.paths import as_path

SUFFIXES = (".jsonl", ".parquet")
KIND = "pages-1"  # the version of what `_scan` finds
EMPTY = (None, "")  # a place of the other list
Part = tuple[bool, Any]  # whether it is a picture, and the text or the picture


class InterleavedSource:
    """Random access to pages as documents, for `grain.MapDataset.source`.

    All texts are learned. What a page ends with must be learned, too, so pictures after its last
    text are left out, unless pictures are drawn.

    Args:
      paths: files of one suffix of SUFFIXES: a file, a folder, a glob or a brace pattern, or a list
        of these.
      images: the folder that the names of pictures are relative to; "": that of their file.
      draw: pictures are drawn, not only looked at.
      read: path or bytes of a picture -> what an `Image` holds for it.

    Raises:
      SourceError: there are no files, files of both suffixes, or a Parquet file of other columns.
    """

    may_lack = False

    def __init__(
        self,
        paths: Paths,
        images: str | os.PathLike = "",
        draw: bool = False,
        read: ReadImage = load_image,
    ) -> None:
        self.paths = find_files(paths, SUFFIXES, "check the path")
        self._images, self._read = picture_folder(images), read
        self._role = DRAWN if draw else UNDERSTOOD
        suffixes = {os.path.splitext(path)[1] for path in self.paths}
        if len(suffixes) > 1:
            raise SourceError(
                f"{shown(self.paths[0])}: beside it are files of another kind "
                f"({', '.join(sorted(suffixes))}): name the files of one kind, such as '*.jsonl'"
            )
        tables = suffixes == {".parquet"}
        self._rows = ParquetTable(self.paths, _columns) if tables else _Objects(self.paths)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> FinishedDocument:
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r}: index {index} is not in [0, {len(self)})")
        row, where, folder = self._rows.row(index)
        read = functools.partial(picture_of, self._images or folder, self._read)
        document = FinishedDocument(where, tuple(self._segments(row, where, read)))
        check_segments(document, where)
        return document

    def _segments(self, row: Mapping[str, Any], where: str, read: ReadImage) -> Iterator[Segment]:
        parts = list(_parts(row, where))
        while parts and self._role == UNDERSTOOD and parts[-1][0]:
            parts.pop()
        if not parts:
            raise RecordError(
                f"{where}: the page has no text: remove it, or draw its pictures, if it has any "
                "(draw=True of the source)"
            )
        for is_picture, group in itertools.groupby(parts, key=lambda part: part[0]):
            values = [value for _, value in group]
            if is_picture:
                yield from (Image(read_image(one, where, read), self._role) for one in values)
            else:
                yield Text(" ".join(values), supervised=True)

    def traits(self) -> np.ndarray:
        """(N,) uint8: every record is a document."""
        return np.broadcast_to(np.uint8(DOCUMENT), len(self))

    def __repr__(self) -> str:
        return described("InterleavedSource", self.paths)


class _Objects:
    """The rows of JSONL files, as those of a `parquet.Table`."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._lines = Lines(paths, SUFFIXES, KIND, _scan)

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, index: int) -> tuple[Mapping[str, Any], str, Any]:
        path, line, _, where = self._lines[index]
        row = parse_row(line, where)
        if "text_list" not in row:
            row = {"captions": row.get("texts"), "image": row.get("images")}
        return row, where, as_path(path).parent


def _scan(path: str) -> Scan:
    return scan_lines(path, lambda line: bytes([DOCUMENT]))


def _columns(existing: Sequence[str], where: str) -> Columns:
    if missing := [name for name in ("texts", "images") if name not in existing]:
        raise SourceError(
            f"{where}: no column {missing[0]!r} among {', '.join(existing)}: pages have the "
            "columns texts and images, as OBELICS; convert the file, or choose another "
            "data.source.kind"
        )
    return Columns("images", "texts", "", "", ())


def _parts(row: Mapping[str, Any], where: str) -> Iterator[Part]:
    """The texts and pictures of a row in order, without blank texts."""
    parts = _of_sentences(row, where) if "text_list" in row else _of_pairs(row, where)
    for is_picture, value in parts:
        if is_picture:
            yield True, value
        elif not isinstance(value, str):
            raise RecordError(f"{where}: a text is {value!r}: give a text, or remove the record")
        elif value.strip():
            yield False, value.strip()


def _of_pairs(row: Mapping[str, Any], where: str) -> Iterator[Part]:
    texts, pictures = row.get("captions"), row.get("image")
    lists = isinstance(texts, list) and isinstance(pictures, list)
    if not lists or len(texts) != len(pictures):
        raise RecordError(
            f"{where}: give texts and images, two lists of the same length, or text_list and "
            "image_info"
        )
    for number, (text, picture) in enumerate(zip(texts, pictures, strict=True), 1):
        if text not in EMPTY and picture not in EMPTY:
            raise RecordError(
                f"{where}: its place {number} has both a text and a picture: leave one null"
            )
        if picture not in EMPTY:
            yield True, picture
        elif text not in EMPTY:
            yield False, text


def _of_sentences(row: Mapping[str, Any], where: str) -> Iterator[Part]:
    sentences, pictures = row["text_list"], row.get("image_info") or []
    if not isinstance(sentences, list) or not isinstance(pictures, list):
        raise RecordError(f"{where}: text_list and image_info must be lists")
    before: dict[int, list[Any]] = {}
    for one in pictures:
        place = one.get("matched_text_index") if isinstance(one, Mapping) else None
        if type(place) is not int or not 0 <= place < len(sentences):
            raise RecordError(
                f"{where}: {str(one)[:60]} belongs to no sentence of {len(sentences)}: give "
                "matched_text_index, counted from 0"
            )
        before.setdefault(place, []).append(one.get("image_name"))
    for number, sentence in enumerate(sentences):
        yield from ((True, name) for name in before.get(number, ()))
        yield False, sentence
