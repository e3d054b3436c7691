"""An in-memory cache in front of a source whose examples are dear to make or to read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.segments import FinishedDocument, Text
from data_pipelines.sources.traits import traits_of_source


class CachedSource:
    """Keeps the first examples that fit into `max_bytes`, and never evicts.

    Epochs are shuffled, so every example is equally far from its next use: keeping the first ones
    hits as often as the bound allows, while evicting the oldest would never hit on a source larger
    than the cache. Safe to share between threads; each worker process fills its own.
    """

    def __init__(self, source: Sequence[Example], max_bytes: int) -> None:
        self.source, self.max_bytes = source, max_bytes
        self.bytes = 0
        self._kept: dict[int, Example] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        kept = self._kept.get(index)
        if kept is not None:
            return kept
        example = self.source[index]
        size = _size(example)
        if self.bytes + size <= self.max_bytes:
            self._kept[index] = example
            self.bytes += size
        return example

    def __repr__(self) -> str:
        return repr(self.source)

    def traits(self) -> np.ndarray | None:
        return traits_of_source(self.source)


def _size(content: Example | FinishedDocument) -> int:
    """Bytes of the pictures and, roughly, of the words."""
    if isinstance(content, FinishedDocument):
        words = [segment.text for segment in content.segments if isinstance(segment, Text)]
        pictures = [s.pixels for s in content.segments if not isinstance(s, Text)]
    else:
        questions = (q.question + q.answer for q in content.questions)
        words = [*content.captions, *questions, content.thought]
        pictures = [content.image, *(edit.target for edit in content.edits)]
    pixels = sum(memoryview(p).nbytes for p in pictures if p is not None)  # or bytes of files
    return pixels + sum(map(len, words)) + 1000
