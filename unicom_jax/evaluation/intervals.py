"""95% intervals. A score without one does not say whether it moved."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054  # 97.5% quantile of the standard normal


class Interval(NamedTuple):
    """An estimate with the ends of its 95% interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, count: int) -> Interval:
    """A proportion with its Wilson score interval (Wilson 1927): inside [0, 1], honest at its ends.

    Raises ValueError without samples or when successes are not in 0..count.
    """
    if count < 1 or not 0 <= successes <= count:
        raise ValueError(
            f"{successes} successes out of {count} is no proportion; evaluate at least 1 sample"
        )
    rate = successes / count
    scale = 1.0 + Z95**2 / count
    centre = (rate + Z95**2 / (2 * count)) / scale
    half = Z95 / scale * math.sqrt(rate * (1 - rate) / count + Z95**2 / (4 * count**2))
    # At the ends the formula gives exactly 0 or 1 up to rounding; `min`, `max` keep value inside.
    return Interval(rate, min(max(0.0, centre - half), rate), max(min(1.0, centre + half), rate))


def mean_interval(values: Sequence[float]) -> Interval:
    """A mean and its normal interval, mean ± 1.96 s/√n.

    Raises ValueError with fewer than two values: one says nothing of the spread.
    """
    array = np.asarray(values, np.float64)
    if array.size < 2:
        raise ValueError(
            f"a mean of {array.size} values has no interval; evaluate at least 2 samples"
        )
    mean = float(array.mean())
    half = Z95 * float(array.std(ddof=1)) / math.sqrt(array.size)
    return Interval(mean, mean - half, mean + half)


def mean_of_proportions(parts: Sequence[Interval]) -> Interval:
    """The unweighted mean of independent proportions, as GenEval's overall score.

    The interval is recovered from the parts' own (MOVER, Zou & Donner 2008): the distances from
    each value to its bound add in quadrature. So it stays as careful near 0 and 1 as Wilson's is.
    """
    if not parts:
        raise ValueError("a mean of no scores; evaluate at least 1 category")
    value = sum(part.value for part in parts) / len(parts)
    below = math.sqrt(sum((part.value - part.low) ** 2 for part in parts)) / len(parts)
    above = math.sqrt(sum((part.high - part.value) ** 2 for part in parts)) / len(parts)
    return Interval(value, max(0.0, value - below), min(1.0, value + above))


def jackknife(statistic: Callable[[np.ndarray], float], count: int, groups: int = 20) -> Interval:
    """Interval of a statistic that is no mean: delete-a-group jackknife (Kott 2001).

    `statistic(indices)` computes it on the samples named by an int array. A bootstrap would repeat
    samples and so inflate a Fréchet distance; leaving a few out does not. The low end is cut at 0.
    """
    groups = min(groups, count)
    if groups < 3:
        raise ValueError(f"a jackknife over {count} samples; evaluate at least 3")
    indices = np.arange(count)
    value = statistic(indices)
    left_out = np.array([statistic(indices[indices % groups != g]) for g in range(groups)])
    variance = (groups - 1) / groups * float(np.sum(np.square(left_out - left_out.mean())))
    half = Z95 * math.sqrt(variance)
    return Interval(value, max(0.0, value - half), value + half)
