"""Finished documents in a folder: a JSONL file of segments, with pictures beside it."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.decoding import shown
from data_pipelines.faults import RecordError
from data_pipelines.segments import (
    DRAWN,
    SOURCE,
    UNDERSTOOD,
    FinishedDocument,
    Image,
    Segment,
    Text,
)
from data_pipelines.sources.checks import check_segments
from data_pipelines.sources.folder import FolderSource, find_list
from data_pipelines.sources.rows import read_image, read_named
from data_pipelines.sources.traits import DOCUMENT

LISTS = ("documents.jsonl",)
TEXTS = {"prompt": False, "response": True}  # key of a segment -> whether it is learned
PICTURES = {"look_at": UNDERSTOOD, "edit": SOURCE, "draw": DRAWN}
SEGMENTS = (*TEXTS, *PICTURES)


class DocumentsSource(FolderSource):
    """Random access to the documents of a folder, for `grain.MapDataset.source`.

    The folder holds `documents.jsonl`, with one JSON object per line:

        {"segments": [{"response": "Two cats met."}, {"look_at": "cats.jpg"},
                      {"response": "They became friends."}]}
        {"segments": [{"edit": "bald.jpg"}, {"look_at": "hat.jpg"},
                      {"prompt": "Put the hat on him."}, {"draw": "hatted.jpg"}]}
        {"text": "A page of words alone."}

    A segment has one key: `prompt` and `response` are texts; `look_at`, `edit` (the source of an
    edit) and `draw` are pictures, given by their path in the folder. Responses and drawn pictures
    are learned, and a document must end with one. A `text` is a document with a single response.

    Raises:
      SourceError: as `FolderSource`.
    """

    def traits(self) -> np.ndarray:
        """(N,) uint8: every record is a document."""
        return np.broadcast_to(np.uint8(DOCUMENT), len(self))

    def __repr__(self) -> str:
        return f"DocumentsSource({shown(self.list)})"

    def _find_list(self) -> pathlib.Path:
        return find_list(self.path, LISTS, '{"segments": [{"look_at": "a.jpg"}, ...]}')

    def first_picture(self, row: Mapping[str, Any]) -> str:
        parts = row.get("segments", ())
        return next(part[key] for part in parts for key in PICTURES if key in part)

    def _content(self, row: Mapping[str, Any], where: str) -> FinishedDocument:
        parts = [{"response": row["text"]}] if "text" in row else row.get("segments")
        if not isinstance(parts, list) or ("text" in row and "segments" in row):
            raise RecordError(f"{where}: give either segments, a list of objects, or a text")
        segments = tuple(self._segment(part, where) for part in parts)
        document = FinishedDocument(where, segments)
        check_segments(document, where)
        return document

    def _segment(self, part: Any, where: str) -> Segment:
        key, value = next(iter(part.items())) if _is_single(part) else (None, None)
        if key not in SEGMENTS or not isinstance(value, str):
            raise RecordError(
                f"{where}: {part!r} is not a segment: give an object with one of the keys "
                f"{', '.join(SEGMENTS)}, and a text or a file name"
            )
        if key in TEXTS:
            return Text(value, supervised=TEXTS[key])
        read = functools.partial(read_named, self.path, self._read)
        return Image(read_image(value, where, read), PICTURES[key])


def _is_single(part: Any) -> bool:
    return isinstance(part, dict) and len(part) == 1
