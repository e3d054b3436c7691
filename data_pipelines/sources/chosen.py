"""Some records of a source: those that can serve a task, or those of a split."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.sources.traits import NEEDS, traits_of_source


class Chosen:
    """Random access to some records of a source, by their indices."""

    def __init__(self, source: Sequence[Example], indices: np.ndarray) -> None:
        self.source, self.indices = source, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r}: index {index} is not in [0, {len(self)})")
        return self.source[int(self.indices[index])]

    def __repr__(self) -> str:
        return f"Chosen({self.source!r}, {len(self)} records)"

    def traits(self) -> np.ndarray | None:
        found = traits_of_source(self.source)
        return None if found is None else found[self.indices]


def records_with(
    source: Sequence[Example], names: Sequence[str], traits: np.ndarray
) -> Sequence[Example]:
    """The records of a source that have at least one of the traits `names`; the source itself where
    all have.

    Args:
      traits: of all its records, `traits_of_source`.
    """
    indices = np.flatnonzero(traits & np.uint8(sum(NEEDS[name] for name in names)))
    return source if len(indices) == len(source) else Chosen(source, indices)
