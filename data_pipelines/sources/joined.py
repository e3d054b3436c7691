"""Several sources, one after the other."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from data_pipelines.sources.traits import traits_of_source

Record = TypeVar("Record")


class Joined(Generic[Record]):
    """Random access to the records of several sources."""

    def __init__(self, sources: Sequence[Sequence[Record]]) -> None:
        self.sources = tuple(sources)
        self._stops = list(itertools.accumulate(map(len, self.sources)))

    def __len__(self) -> int:
        return self._stops[-1]

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r}: index {index} is not in [0, {len(self)})")
        part = bisect.bisect_right(self._stops, index)
        return self.sources[part][index - (self._stops[part - 1] if part else 0)]

    def __repr__(self) -> str:
        return f"Joined({', '.join(map(repr, self.sources))})"

    def traits(self) -> np.ndarray | None:
        found = [traits_of_source(source) for source in self.sources]
        return None if any(one is None for one in found) else np.concatenate(found)
