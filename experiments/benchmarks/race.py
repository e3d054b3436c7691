"""Contestants take their steps in turn, so that drift of the machine affects all of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A thing that can be timed.

    Attributes:
      name: for the table.
      step: takes one step and returns when it is done.
      parameters: number of trained weights.
      target: what our time over this one's should be at most; None: no target.
    """

    name: str
    step: Callable[[], object]
    parameters: int
    target: float | None = None


@dataclasses.dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high))


def race(
    contestants: Sequence[Contestant],
    rounds: int,
    warmup: int = 2,
    report: Callable[[str], None] = lambda text: None,
) -> np.ndarray:
    """Seconds a step, (rounds, contestants). Each round starts with another contestant."""
    for contestant in contestants:
        report(f"warming up: {contestant.name}")
        for _ in range(warmup):
            contestant.step()
    seconds = np.zeros((rounds, len(contestants)))
    for turn in range(rounds):
        report(f"round {turn + 1} of {rounds}")
        for offset in range(len(contestants)):
            place = (turn + offset) % len(contestants)
            start = time.perf_counter()
            contestants[place].step()
            seconds[turn, place] = time.perf_counter() - start
    return seconds


def ratios(seconds: np.ndarray, ours: int = 0) -> list[Spread]:
    """Our time over each contestant's, from the ratios within each round."""
    return [Spread.of(column) for column in (seconds[:, [ours]] / seconds).T]
