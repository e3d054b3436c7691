"""A subset of a source's records: those that can serve a task, or those of a split."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.sources.index import mapped
from data_pipelines.sources.joined import Joined
from data_pipelines.sources.shared import shared
from data_pipelines.sources.traits import LACKS, NEEDS, may_lack, traits_of_source

LARGE = 2**17  # bytes; smaller masks are sent to worker processes as they are
BLOCK = 1024  # numbers whose rank is counted together; a multiple of 8


class Ascending:
    """The indices at which a mask is true, in order, in one bit per index instead of eight bytes.

    For 100 million records this is 12.5 MB. Worker processes map them from a file (`shared`).

    Args:
      mask: (N,) bool.
    """

    def __init__(self, mask: np.ndarray) -> None:
        self._size, self._bits = len(mask), np.packbits(mask)
        starts = np.arange(0, len(mask), BLOCK)
        counts = np.add.reduceat(mask, starts, dtype=np.int64) if len(mask) else starts
        self._ranks = np.cumsum(counts)  # true values up to the end of each block

    def __getstate__(self) -> dict:
        state = dict(self.__dict__)
        if len(self._bits) >= LARGE and (file := shared(self._bits)):
            state["_bits"] = file
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        if isinstance(self._bits, pathlib.Path):
            self._bits = mapped(self._bits)

    def __len__(self) -> int:
        return int(self._ranks[-1]) if len(self._ranks) else 0

    def __getitem__(self, rank: int) -> int:
        if not 0 <= rank < len(self):
            raise IndexError(f"rank {rank} is not in [0, {len(self)})")
        block = int(np.searchsorted(self._ranks, rank, side="right"))
        before = int(self._ranks[block - 1]) if block else 0
        bits = self._bits[block * BLOCK // 8 : (block + 1) * BLOCK // 8]
        return block * BLOCK + int(np.flatnonzero(np.unpackbits(bits))[rank - before])

    def mask(self) -> np.ndarray:
        """(N,) bool."""
        return np.unpackbits(self._bits, count=self._size).view(bool)

    def __array__(self, dtype: type | None = None, copy: bool | None = None) -> np.ndarray:
        return np.flatnonzero(self.mask()).astype(dtype or np.int64)


class Chosen:
    """Random access to some records of a source, given by their indices, which may be in any order
    or, more compactly, `Ascending`.
    """

    def __init__(self, source: Sequence[Example], indices: np.ndarray | Ascending) -> None:
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
        if found is None:
            return None
        compact = isinstance(self.indices, Ascending)
        return found[self.indices.mask() if compact else self.indices]


def having(source: Sequence[Example], takes: Sequence[str]) -> Sequence[Example]:
    """The records that lack nothing in `takes`, as far as the source knows; () if there are none.

    Args:
      takes: keys of `LACKS`.
    """
    if isinstance(source, Joined):
        parts = [part for part in (having(one, takes) for one in source.sources) if len(part)]
        return Joined(parts) if parts else ()
    traits = traits_of_source(source) if may_lack(source) else None
    return source if traits is None else records_with(source, (), traits, takes)


def records_with(
    source: Sequence[Example],
    names: Sequence[str],
    traits: np.ndarray,
    takes: Sequence[str] = (),
) -> Sequence[Example]:
    """The records of a source that can serve a task; the source itself if all can.

    Args:
      names: keys of `NEEDS`, of which a record needs at least one; (): it needs none.
      traits: those of all its records, from `traits_of_source`.
      takes: keys of `LACKS`, none of which a record may lack.
    """
    fit = (traits & np.uint8(sum(LACKS[name] for name in takes))) == 0
    if names:
        fit &= (traits & np.uint8(sum(NEEDS[name] for name in names))) != 0
    return source if fit.all() else Chosen(source, Ascending(fit))
