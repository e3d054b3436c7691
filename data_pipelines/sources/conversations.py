"""Conversations about any number of pictures, from JSONL files in LLaVA's layout."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from data_pipelines.decoding import load_image
from data_pipelines.faults import RecordError
from data_pipelines.segments import FinishedDocument, Image, Segment, Text
from data_pipelines.sources.checks import check_segments
from data_pipelines.sources.files import Paths, described
from data_pipelines.sources.jsonl import JsonlSource
from data_pipelines.sources.rows import (
    IMAGE_MARK,
    ReadImage,
    parse_row,
    picture_names,
    read_image,
    read_named,
    turns_of,
)
from data_pipelines.sources.traits import DOCUMENT
from unicom_jax.core.paths import as_path


class ConversationsSource(JsonlSource):
    """Random access to conversations as finished documents, turn after turn:

        {"image": ["cat.jpg", "dog.jpg"],
         "conversations": [{"from": "human", "value": "<image> and <image>: which one barks?"},
                           {"from": "gpt", "value": "The second."}]}

    Each mark `<image>` is the place of the next picture; without marks, all pictures come first. A
    conversation may have no pictures. `JsonlSource` reads those about one picture as questions.

    Args, errors: as `JsonlSource`.
    """

    may_lack = False

    def __init__(
        self, paths: Paths, images: str | os.PathLike = "", read: ReadImage = load_image
    ) -> None:
        super().__init__(paths, images, read)

    def __getitem__(self, index: int) -> FinishedDocument:
        path, line, _, where = self._lines[index]
        row = parse_row(line, where)
        read = functools.partial(read_named, self.images or as_path(path).parent, self._read)
        document = FinishedDocument(where, tuple(_segments(row, where, read)))
        check_segments(document, where)
        return document

    def traits(self) -> np.ndarray:
        """(N,) uint8: every record is a document."""
        return np.broadcast_to(np.uint8(DOCUMENT), len(self))

    def __repr__(self) -> str:
        return described("ConversationsSource", self.paths)


def _segments(row: Mapping[str, Any], where: str, read: ReadImage) -> Iterator[Segment]:
    turns = turns_of(row, where)
    if any(IMAGE_MARK in text for text in turns[1::2]):
        raise RecordError(
            f"{where}: an answer has a mark {IMAGE_MARK}: only questions show pictures; remove it, "
            "or use kind 'documents' for answers with pictures"
        )
    pictures = [Image(read_image(name, where, read)) for name in picture_names(row)]
    marks = sum(text.count(IMAGE_MARK) for text in turns[::2])
    if marks not in (0, len(pictures)):
        raise RecordError(
            f"{where}: {len(pictures)} pictures and {marks} marks {IMAGE_MARK}: give one mark for "
            "each picture, or none"
        )
    left = iter(pictures)
    if not marks:
        yield from left
    for number, text in enumerate(turns):
        if number % 2:
            yield Text(text.strip(), supervised=True)
            continue
        for place, words in enumerate(text.split(IMAGE_MARK)):
            if place:
                yield next(left)
            if words.strip():
                yield Text(words.strip())
