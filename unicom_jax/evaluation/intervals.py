"""95% confidence intervals of proportions, means and distances between samples."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Float

Z95 = 1.959963984540054  # 97.5% quantile of the standard normal


class Interval(NamedTuple):
    """An estimate with the ends of its 95% interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, count: int) -> Interval:
    """A proportion with its Wilson score interval (Wilson 1927), which stays inside [0, 1].

    Raises ValueError without samples or when successes are not in 0..count.
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(
            f"{successes} successes out of {count} is not a proportion; evaluate at least 1 sample"
        )
    return _wilson(successes / count, count)


def _wilson(rate: float, count: float) -> Interval:
    scale = 1.0 + Z95**2 / count
    centre = (rate + Z95**2 / (2 * count)) / scale
    half = Z95 / scale * math.sqrt(rate * (1 - rate) / count + Z95**2 / (4 * count**2))
    # At the ends the formula gives 0 or 1 up to rounding; `min` and `max` keep the value inside.
    return Interval(rate, min(max(0.0, centre - half), rate), max(min(1.0, centre + half), rate))


def clustered_wilson(outcomes: Sequence[bool], clusters: Sequence[Hashable]) -> Interval:
    """A proportion of samples that come in clusters, such as several questions about one picture.

    Wilson's interval at the effective number of samples: their number over the design effect,
    which is the cluster-robust variance over that of independent samples, times the ratio of
    Student's quantiles for the degrees of freedom (Korn & Graubard 1998). Equal to `wilson` if
    every sample is its own cluster. If all outcomes agree, the similarity within clusters cannot be
    estimated, and each cluster counts as one sample.

    Raises ValueError without samples.
    """
    values, sums = np.asarray(outcomes, np.float64), _by_cluster(outcomes, clusters)
    count, groups = values.size, len(sums)
    if count == groups:
        return wilson(int(values.sum()), count)
    rate = float(values.mean())
    if groups == 1 or rate in (0.0, 1.0):
        return _wilson(rate, groups)
    robust = _robust_variance(values, sums)
    design = robust * (count - 1) / (rate * (1 - rate))
    shrunk = (_t95(count - 1) / _t95(groups - 1)) ** 2
    return _wilson(rate, count / max(design, 1.0) * shrunk)


def mean_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Interval:
    """A mean and its interval by Student's t, mean ± t s/√n with n - 1 degrees of freedom.

    Args:
      clusters: the cluster of each value, if several belong together: the cluster-robust variance
        (Liang & Zeger 1986) then replaces s²/n, and n is the number of clusters.
      bounds: the range of values, to which the interval is clipped.

    Raises ValueError with fewer than two values or clusters: one says nothing about the spread.
    """
    array = np.asarray(values, np.float64)
    sums = _by_cluster(array, range(array.size) if clusters is None else clusters)
    if len(sums) < 2:
        raise ValueError(
            f"a mean of {array.size} values in {len(sums)} clusters has no interval; evaluate at "
            "least 2 samples"
        )
    half = _t95(len(sums) - 1) * math.sqrt(_robust_variance(array, sums))
    mean = float(array.mean())
    return Interval(mean, max(bounds[0], mean - half), min(bounds[1], mean + half))


def _by_cluster(
    values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable]
) -> dict[Hashable, tuple[float, int]]:
    """Sum and number of the values of each cluster."""
    sums: dict[Hashable, tuple[float, int]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        total, count = sums.get(cluster, (0.0, 0))
        sums[cluster] = total + float(value), count + 1
    return sums


def _robust_variance(values: np.ndarray, sums: Mapping[Hashable, tuple[float, int]]) -> float:
    """Variance of the mean: G/(G - 1) times the sum of squared cluster residuals over n²."""
    mean, groups = values.mean(), len(sums)
    squares = sum((total - count * mean) ** 2 for total, count in sums.values())
    return groups / (groups - 1) * squares / values.size**2


def _t95(degrees: int) -> float:
    """97.5% quantile of Student's t."""
    return float(scipy.stats.t.ppf(0.975, degrees))


def mean_of_proportions(parts: Sequence[Interval]) -> Interval:
    """The unweighted mean of independent proportions, as in GenEval's overall score.

    The interval is derived from the parts' own (MOVER, Zou & Donner 2008): the distances from each
    value to its bound add in quadrature. So near 0 and 1 it is as cautious as Wilson's.
    """
    if not parts:
        raise ValueError("a mean of no scores; evaluate at least 1 category")
    value = sum(part.value for part in parts) / len(parts)
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / len(parts)
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    return Interval(value, max(0.0, value - below), min(1.0, value + above))


def u_statistic_interval(kernel: Float[np.ndarray, "n n"]) -> Interval:
    """Mean of a symmetric kernel over pairs of different samples, with a jackknife interval.

    The mean is a U-statistic of degree 2, and therefore unbiased. Its variance is the delete-one
    jackknife's (Arvesen 1969), which is too large if the statistic is degenerate, as for two equal
    distributions: the interval is then longer than necessary, never too short.

    Raises ValueError with fewer than three samples.
    """
    count = len(kernel)
    if count < 3:
        raise ValueError(f"a jackknife over {count} samples; evaluate at least 3")
    rows = kernel.sum(axis=1) - np.diagonal(kernel)
    total = float(rows.sum())
    value = total / (count * (count - 1))
    left_out = (total - 2 * rows) / ((count - 1) * (count - 2))
    variance = (count - 1) / count * float(np.sum(np.square(left_out - left_out.mean())))
    half = _t95(count - 1) * math.sqrt(variance)
    return Interval(value, value - half, value + half)
