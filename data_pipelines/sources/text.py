"""Text corpora: one document per line, as plain text or in a field of a JSON object.

A long document is cut into pieces, each of which is a record, so that all of it is used.
"""

from __future__ import annotations

import functools

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sources.checks import check_texts
from data_pipelines.sources.files import Paths, described
from data_pipelines.sources.index import Scan, short_hash
from data_pipelines.sources.lines import Lines, scan_lines
from data_pipelines.sources.rows import parse_row
from data_pipelines.sources.traits import LACKS

KIND = "text-1"  # the version of what `scan` finds
JSON = ".jsonl"
SUFFIXES = (".txt", JSON)


class TextSource:
    """Random access to the pieces of the documents of text files, for `grain.MapDataset.source`.

    Args:
      paths: a file, a folder (all its *.txt and *.jsonl), a glob or a brace pattern, or a list of
        these. A .jsonl file holds one JSON object per line, any other file one document per line.
      piece: the most bytes of a piece, in UTF-8.
      field: the field of the JSON objects that holds the document.
    """

    may_lack = True

    def __init__(self, paths: Paths, piece: int, field: str = "text") -> None:
        if piece < 16:
            raise SourceError(f"data.source.piece={piece} bytes is too small: give at least 16")
        self.piece, self.field = piece, field
        kind = f"{KIND}-{short_hash(str(piece), field)}"
        scan = functools.partial(_scan, piece=piece, field=field)
        self._lines = Lines(paths, SUFFIXES, kind, scan)
        self.paths = self._lines.paths

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Example:
        path, line, part, where = self._lines[index]
        document = _document(path, line, self.field, where)
        example = Example(where, None, (cut(document, self.piece)[part],))
        check_texts(example, where)
        return example

    def traits(self) -> np.ndarray:
        """(N,) uint8: none has a picture."""
        return np.broadcast_to(np.uint8(LACKS["image"]), len(self))

    def __repr__(self) -> str:
        return described("TextSource", self.paths)


def cut(text: str, most: int) -> list[str]:
    """A text in pieces, at least one, of at most `most` bytes of UTF-8 each.

    It is cut after the last line, or else the last word, that leaves the piece at least half full;
    otherwise it is cut between two characters. Spaces around a cut are left out.
    """
    data = text.encode("utf-8", "surrogatepass").strip()
    pieces, start = [], 0
    while len(data) - start > most:
        end = start + most
        while data[end] & 0xC0 == 0x80:  # inside a character
            end -= 1
        half = start + most // 2
        breaks = (data.rfind(mark, half, end) for mark in (b"\n", b" "))
        end = next((place for place in breaks if place > start), end)
        pieces.append(data[start:end].strip())
        start = end
        while data[start : start + 1].isspace():
            start += 1
    pieces.append(data[start:])
    return [piece.decode("utf-8", "surrogatepass") for piece in pieces]


def _scan(path: str, piece: int, field: str) -> Scan:
    bare = bytes([LACKS["image"]])

    def records(line: bytes) -> bytes:
        if len(line) <= piece:  # JSON is never shorter than the text in it
            return bare
        try:
            return bare * len(cut(_document(path, line.strip(), field, ""), piece))
        except RecordError:  # the reason is reported when the record is read
            return bare

    return scan_lines(path, records)


def _document(path: str, line: bytes, field: str, where: str) -> str:
    if not path.endswith(JSON):
        try:
            return line.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise RecordError(f"{where}: not UTF-8 ({error.reason}): convert the file") from None
    row = parse_row(line, where)
    if field in row and not isinstance(row[field], str):
        raise RecordError(f"{where}: {field!r} is {row[field]!r}: give a text, or remove the line")
    if field not in row:
        raise RecordError(
            f"{where}: no text in {field!r}: set data.source.captions to one of "
            f"{', '.join(map(repr, row)) or '(it is empty)'}"
        )
    return row[field]
