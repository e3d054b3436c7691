"""A held-out share of a source that has no evaluation split of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.faults import SourceError
from data_pipelines.sources.chosen import Ascending, Chosen

TRAIN, EVALUATION = "train", "eval"
CHUNK = 2**16  # records whose lots are drawn at once, so that they fit into the processor's cache


def held_out(count: int, share: float) -> np.ndarray:
    """Which of `count` records are held out: (count,) bool, about `share` of them.

    Each record's lot is a hash of its index alone (SplitMix64, Steele et al. 2014): it is the same
    on every machine and when records are appended, and a larger share keeps all held-out records.
    Every k-th record would not do, since lists are often periodic.
    """
    held = np.empty(count, bool)
    limit = np.uint64(math.ceil(share * 2**53))
    for start in range(0, count, CHUNK):
        np.less(_lots(start, min(start + CHUNK, count)), limit, out=held[start : start + CHUNK])
    return held


def _lots(start: int, stop: int) -> np.ndarray:
    """(stop - start,) uint64 of 53 bits, computed in place: 100 million take seconds."""
    lot = np.arange(start + 1, stop + 1, dtype=np.uint64)
    lot *= np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        lot ^= lot >> np.uint64(shift)
        lot *= np.uint64(factor)
    lot ^= lot >> np.uint64(31)
    lot >>= np.uint64(11)
    return lot


class SplitSource(Chosen):
    """One side of a source: random access to the records that are held out, or to the others."""

    def __init__(
        self, source: Sequence[Example], indices: np.ndarray | Ascending, split: str
    ) -> None:
        super().__init__(source, indices)
        self.split = split

    def __repr__(self) -> str:
        return f"SplitSource({self.source!r} {self.split})"


def split_source(source: Sequence[Example], split: str, share: float) -> Sequence[Example]:
    """The records of a split: "eval" has about `share` of them, "train" all others.

    With a share of 0 nothing is held out: both splits are the whole source.

    Raises:
      SourceError: an unknown split, a share outside [0, 1), or one that leaves a split empty. This
        is checked for both splits, so that training does not start if evaluation would fail.
    """
    if split not in (TRAIN, EVALUATION):
        raise SourceError(f"split {split!r} is unknown: choose {TRAIN} or {EVALUATION}")
    if not 0 <= share < 1:
        raise SourceError(
            f"data.source.held_out={share} is not a share in [0, 1): set it to 0.05, or to 0 to "
            "evaluate on the training records"
        )
    if share == 0:
        return source
    evaluation = held_out(len(source), share)
    for empty, cure in ((not evaluation.any(), "raise"), (evaluation.all(), "lower")):
        if empty:
            name = EVALUATION if cure == "raise" else TRAIN
            raise SourceError(
                f"data.source.held_out={share} leaves no record of {len(source)} to the {name} "
                f"split: {cure} it, or set it to 0 to evaluate on the training records"
            )
    return SplitSource(source, Ascending(evaluation == (split == EVALUATION)), split)
