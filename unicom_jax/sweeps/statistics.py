"""Is one variant better than another? Paired comparisons over seeds and over test items.

A score is a weighted sum of the outcomes of items, so two models that were scored on the same items
have a difference by item. Two things make that difference uncertain, and they are told apart:

    seeds   another training run would give another difference: Student's t over the differences of
            the seeds, which are paired, because the variants share data and initial weights
    items   other test items would: bootstrap over the differences of items (of pictures, where
            several questions are about one), averaged over the seeds, and made wider for few items
            (Hesterberg 2015)

The interval that decides adds both variances, with degrees of freedom after Satterthwaite (1946),
and is at least as wide as that from seeds and that from items alone: two or three seeds that agree
by chance would otherwise leave the degrees of freedom to the items. A part of the seeds' variance
comes from the items and counts twice, so it is too wide rather than too narrow. One pair of runs
alone has an interval over items only: it says nothing about other seeds.

Several comparisons of one sweep are tested together by Holm's method (Holm 1979), which bounds the
probability of any wrong verdict among them; the intervals are of 95% each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from unicom_jax.evaluation.intervals import Z95, Interval

LEVEL = 0.95
RESAMPLES = 2000
ROUNDING = 1e-9  # spread of differences, as a share of their mean, below which they are equal
BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"
MEASURED_BY = "measured_by"
# Facts that have to be the same -> what two runs were, if they differ in one.
OBSTACLES = {
    "samples": "scored on different numbers of samples; evaluate both on the same data, with the "
    "same evaluation settings",
    "pictures": "scored on different pictures; evaluate both on the same data, with the same "
    "evaluation.pictures",
    "rule": "scored by different rules for answers; evaluate both with the same "
    "evaluation.answer_rule",
    MEASURED_BY: "measured by different encoders, whose features cannot be compared",
}


@dataclasses.dataclass(frozen=True)
class Outcomes:
    """A score of one run.

    Attributes:
      value: the score.
      items: what it is the sum of, by item: weight times outcome; empty where it is no sum, such as
        a distance of distributions.
      clusters: item -> what it belongs together with.
      facts: what has to be the same for two runs to be comparable, by a key of `OBSTACLES`;
        facts that are not known are left out.
    """

    value: float
    items: Mapping[str, float] = dataclasses.field(default_factory=dict)
    clusters: Mapping[str, str] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Effect:
    """A difference of two variants in a score, the second one's taken from the first one's.

    Attributes:
      interval: of the difference, from seeds and items together.
      seeds, items: the intervals from one of them alone; None where there is nothing to take it
        from.
      pairs: seeds that both variants have.
      count: items that both were scored on.
      p: two-sided p value of the interval; NaN where there is none.
    """

    interval: Interval
    seeds: Interval | None
    items: Interval | None
    pairs: int
    count: int
    p: float


def effect_of(first: Mapping[int, Outcomes], second: Mapping[int, Outcomes]) -> Effect:
    """The effect over runs by seed.

    Raises:
      ValueError: no seed in common, runs that cannot be compared (`obstacle`), or a score that is
        no finite number.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        raise ValueError("the runs have no seed in common; compare runs of the same seeds")
    differences = [first[seed].value - second[seed].value for seed in seeds]
    for seed, difference in zip(seeds, differences, strict=True):
        if not math.isfinite(difference):
            raise ValueError(
                f"of seed {seed}, the scores are {first[seed].value:g} and {second[seed].value:g}"
            )
    value = float(np.mean(differences))
    over_seeds = _student(differences) if len(seeds) > 1 else None
    clusters = [_by_cluster(first[seed], second[seed]) for seed in seeds]
    over_items = _bootstrap(clusters, value)
    groups = len(set().union(*clusters))
    parts = [(over_seeds, len(seeds) - 1), (over_items, groups - 1)]
    interval, p = _combined(value, [(_error(*part), part[1]) for part in parts if part[0]])
    if over_items and not over_seeds and math.isfinite(interval.high):
        interval = over_items
    return Effect(interval, over_seeds, over_items, len(seeds), len(first[seeds[0]].items), p)


def _student(values: Sequence[float]) -> Interval:
    mean, error = float(np.mean(values)), float(scipy.stats.sem(values))
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * error
    return Interval(mean, mean - half, mean + half)


def obstacle(first: Outcomes, second: Outcomes, facts: Iterable[str] = OBSTACLES) -> str:
    """Why two runs cannot be compared in a score; "" if they can.

    Args:
      facts: those that have to be the same.
    """
    for name in facts:
        both = [one.facts[name] for one in (first, second) if name in one.facts]
        if len(both) == 2 and both[0] != both[1]:
            return f"the runs were {OBSTACLES[name]}"
    if first.items.keys() != second.items.keys():
        return "the runs were scored on different items; evaluate both on the same data"
    return ""


def _by_cluster(first: Outcomes, second: Outcomes) -> dict[str, float]:
    """The difference of two runs that each cluster of items contributes."""
    if why := obstacle(first, second):
        raise ValueError(why)
    found: dict[str, float] = {}
    for item, value in first.items.items():
        cluster = first.clusters.get(item, item)
        found[cluster] = found.get(cluster, 0.0) + value - second.items[item]
    return found


def _bootstrap(clusters: Sequence[Mapping[str, float]], value: float) -> Interval | None:
    """Percentiles over resampled clusters, the same of all seeds; None with fewer than three.

    Percentiles alone exclude 0 for a quarter of equal models with 3 clusters: they estimate the
    spread with n instead of n - 1, and take its estimate to be exact. Both ends are therefore
    moved away from the value by Student's quantile over the normal one, times √(n / (n - 1)).
    """
    names = sorted(set().union(*clusters))
    if len(names) < 3:
        return None
    # The sum of all is the difference of the scores; the mean of `parts` is the same.
    parts = np.mean([[one.get(name, 0.0) for name in names] for one in clusters], 0) * len(names)
    if np.ptp(parts) == 0:
        return Interval(value, value, value)
    found = scipy.stats.bootstrap(
        (parts,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=LEVEL,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    groups = len(names)
    wider = _quantile(groups - 1) / Z95 * math.sqrt(groups / (groups - 1))
    low, high = (value + wider * (float(end) - value) for end in found)
    return Interval(value, low, high)


def _error(interval: Interval, degrees: int) -> float:
    """The standard error behind an interval."""
    return (interval.high - interval.low) / 2 / _quantile(degrees)


def _quantile(degrees: float) -> float:
    return float(scipy.stats.t.ppf((1 + LEVEL) / 2, degrees))


def _combined(value: float, errors: Sequence[tuple[float, int]]) -> tuple[Interval, float]:
    """The interval of independent standard errors with their degrees of freedom, and the p value of
    no difference; neither is smaller than that of one of the errors alone.

    Where all differences are equal, no spread can be estimated. The p value is then that of a sign
    test, and a difference that it leaves undecided has no interval.
    """
    unknown = Interval(value, -math.inf, math.inf)
    variance = sum(error**2 for error, _ in errors)
    if not errors:
        return unknown, math.nan
    if math.sqrt(variance) <= ROUNDING * abs(value):
        p = 1.0 if value == 0 else 2.0 ** -max(degrees for _, degrees in errors)
        return Interval(value, value, value) if value == 0 or p < 1 - LEVEL else unknown, p
    degrees = variance**2 / sum(error**4 / degrees for error, degrees in errors)
    tests = [*errors, (math.sqrt(variance), degrees)]
    half = max(error * _quantile(degrees) for error, degrees in tests)
    p = max(_p_value(value / error, degrees) for error, degrees in tests if error > 0)
    return Interval(value, value - half, value + half), p


def _p_value(t: float, degrees: float) -> float:
    """Two-sided."""
    return 2 * float(scipy.stats.t.sf(abs(t), degrees))


def holm(ps: Sequence[float]) -> list[float]:
    """p values adjusted for their number by Holm's method; those that are NaN stay so and do not
    count."""
    known = sorted((p, place) for place, p in enumerate(ps) if not math.isnan(p))
    adjusted, highest = [math.nan] * len(ps), 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = highest
    return adjusted


def verdict(effect: Effect, p: float, higher_is_better: bool) -> str:
    """BETTER or WORSE, the first variant than the second, or UNDECIDED.

    Args:
      p: adjusted for the number of comparisons.
    """
    if math.isnan(p) or p >= 1 - LEVEL or effect.interval.value == 0:
        return UNDECIDED
    return BETTER if (effect.interval.value > 0) == higher_is_better else WORSE
