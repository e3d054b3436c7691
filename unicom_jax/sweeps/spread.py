"""How far the scores of one configuration lie apart over its training seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unicom_jax.config import ConfigError
from unicom_jax.evaluation.intervals import Interval, clustered_wilson, mean_interval
from unicom_jax.evaluation.run import SCORES_FILE
from unicom_jax.evaluation.scores import read_scores, score_names
from unicom_jax.sweeps.compare import mean_of, show
from unicom_jax.sweeps.hand import Group
from unicom_jax.sweeps.items import outcomes_of
from unicom_jax.sweeps.statistics import MEASURED_BY, OBSTACLES, Outcomes, obstacle

SPREAD_HEADINGS = ("score", "mean", "range over seeds", "95% interval", "untrained", "chance", "n")


@dataclasses.dataclass(frozen=True)
class Spread:
    """A score of several seeds.

    Attributes:
      mean, least, most: over the seeds; NaN if the score of one is no number.
      interval: of the mean, over test items; None if the score is no mean over
        several items.
      untrained, chance: of the first seed; None if they were not measured.
      count: test items of each seed.
    """

    score: str
    mean: float
    least: float
    most: float
    interval: Interval | None
    untrained: float | None
    chance: float | None
    count: int


def spreads(group: Group) -> list[Spread]:
    """The scores that all runs of a group have.

    Raises:
      ConfigError: the group has a single run, or its runs cannot be compared (`obstacle`).
    """
    if len(group.runs) < 2:
        (run,) = group.runs.values()
        raise ConfigError(
            f"{run} is a single run; give others to compare it with, or the same configuration "
            "trained with other seeds"
        )
    flat = {seed: read_scores(run / SCORES_FILE) for seed, run in group.runs.items()}
    first, *others = flat.values()
    names = [name for name in score_names(first) if all(name in other for other in others)]
    measured = {name: _measured(group.runs, name) for name in names}
    return [
        Spread(
            score=name,
            mean=mean_of(of_seed),
            least=float(np.min([one.value for one in of_seed.values()])),
            most=float(np.max([one.value for one in of_seed.values()])),
            interval=interval_over_items(of_seed),
            untrained=first[f"{name}.untrained"],
            chance=first[f"{name}.chance"],
            count=first[f"{name}.n"],
        )
        for name, of_seed in measured.items()
        if len(of_seed) == len(group.runs)
    ]


def _measured(runs: Mapping[int, Path], name: str) -> dict[int, Outcomes]:
    found = {seed: outcomes_of(run, name) for seed, run in runs.items()}
    return {seed: one for seed, one in found.items() if one is not None}


def interval_over_items(measured: Mapping[int, Outcomes]) -> Interval | None:
    """The interval of the mean over seeds for other test items, with the same models.

    All seeds answer the same items, so an item's outcomes are a cluster.
    """
    runs = list(measured.values())
    if any(math.isnan(one.value) for one in runs):
        return None
    # Each seed may have an encoder of its own: the values are not subtracted.
    facts = [fact for fact in OBSTACLES if fact != MEASURED_BY]
    if why := next(filter(None, (obstacle(one, runs[0], facts) for one in runs)), ""):
        raise ConfigError(why)
    if not runs[0].items:
        return None
    # An item's value is its share of the score, so n times the value is its outcome; rounding turns
    # 0.9999999 into 1.
    marks = [round(len(one.items) * value, 9) for one in runs for value in one.items.values()]
    clusters = [one.clusters.get(item, item) for one in runs for item in one.items]
    if len(set(clusters)) < 2:  # a single picture says nothing about others
        return None
    if set(marks) <= {0.0, 1.0}:
        return clustered_wilson([mark == 1.0 for mark in marks], clusters)
    return mean_interval(marks, clusters)


def spread_rows(found: Sequence[Spread]) -> list[tuple[str, ...]]:
    """The cells of a table under `SPREAD_HEADINGS`."""
    return [
        (
            one.score,
            show(one.score, one.mean),
            f"{show(one.score, one.least)} to {show(one.score, one.most)}",
            _ends(one),
            show(one.score, one.untrained),
            show(one.score, one.chance),
            str(one.count),
        )
        for one in found
    ]


def _ends(one: Spread) -> str:
    if one.interval is None:
        return "–"
    return f"{show(one.score, one.interval.low)} to {show(one.score, one.interval.high)}"
