"""Scaling laws: how loss falls with weights, tokens and operations, and what a larger run reaches.

Two ways of Hoffmann et al. 2022 (arXiv 2203.15556, §3.2 and §3.3):

    IsoFLOP    for each budget C, a parabola of the loss in log N, with the best size N*(C) at its
               vertex; N* ∝ C^a and, with D* = the tokens that C allows, D* ∝ C^b
    surface    L(N, D) = E + A / N^α + B / D^β, fitted to all runs by Huber's loss on log L;
               N* ∝ C^(β / (α + β))

Intervals are percentiles of a bootstrap over runs within each budget. A vertex outside the sizes
that were tried, or a parabola that opens downwards, has no optimum and is left out and named:
exponents from such budgets would be extrapolated.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import scipy.optimize
import scipy.special

from unicom_jax.evaluation.intervals import Interval

T = TypeVar("T")
RESAMPLES = 500
LEVEL = 0.95
HUBER = 1e-3  # width of the quadratic part, in log L
POWERS = (0.01, 3.0)  # exponents of a power law that are searched


@dataclasses.dataclass(frozen=True)
class Run:
    """One trained model.

    Attributes:
      budget: what it cost, in operations; runs of a budget make one parabola.
      weights: N, trained weights without tables of words.
      tokens: D, tokens that it has read.
      loss: at its end, on held-out data.
    """

    budget: float
    weights: float
    tokens: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The vertex of a budget's parabola: the best size, its tokens, and the loss there."""

    budget: float
    weights: float
    tokens: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Parabola:
    """Loss = low + slope (log N - centre) + bend (log N - centre)^2 of one budget."""

    centre: float
    bend: float
    slope: float
    low: float

    def __call__(self, weights: float) -> float:
        """The loss of a model of N weights."""
        return float(np.polyval((self.bend, self.slope, self.low), np.log(weights) - self.centre))

    @property
    def vertex(self) -> float:
        """log N at the extremum."""
        return self.centre - self.slope / (2 * self.bend)


@dataclasses.dataclass(frozen=True)
class IsoFlop:
    """The optima of all budgets that have one, and how they grow.

    Attributes:
      parabolas: of every budget.
      a, b: exponents of N* and D* in C; NaN with fewer than two optima.
      without: budgets without an optimum inside the sizes that were tried.
    """

    optima: tuple[Optimum, ...]
    parabolas: Mapping[float, Parabola]
    a: float
    b: float
    without: tuple[float, ...]


def iso_flop(runs: Sequence[Run]) -> IsoFlop:
    """Parabolas of all budgets.

    Raises:
      ValueError: a budget with fewer than three sizes.
    """
    groups = {c: [run for run in runs if run.budget == c] for c in budgets_of(runs)}
    parabolas = {c: _parabola(group) for c, group in groups.items()}
    found = {c: _optimum(group, parabolas[c]) for c, group in groups.items()}
    optima = tuple(one for one in found.values() if one)
    a, b = np.nan, np.nan
    if len(optima) > 1:
        costs = [one.budget for one in optima]
        a = _exponent(costs, [one.weights for one in optima])
        b = _exponent(costs, [one.tokens for one in optima])
    return IsoFlop(optima, parabolas, a, b, tuple(c for c, one in found.items() if one is None))


def budgets_of(runs: Sequence[Run]) -> list[float]:
    """The budgets of some runs, from the smallest on."""
    return sorted({run.budget for run in runs})


def _parabola(runs: Sequence[Run]) -> Parabola:
    sizes = np.log([run.weights for run in runs])
    if len(np.unique(sizes)) < 3:
        raise ValueError(
            f"the budget {runs[0].budget:.3g} has {len(np.unique(sizes))} sizes; a parabola needs "
            "at least three"
        )
    centre = sizes.mean()  # conditions the fit
    fit = np.polyfit(sizes - centre, [run.loss for run in runs], 2)
    return Parabola(float(centre), *map(float, fit))


def _optimum(runs: Sequence[Run], parabola: Parabola) -> Optimum | None:
    sizes = np.log([run.weights for run in runs])
    if parabola.bend <= 0 or not sizes.min() <= parabola.vertex <= sizes.max():
        return None
    weights = float(np.exp(parabola.vertex))
    # Tokens of a run of the budget that has N weights, between those that were trained.
    fit = np.polyfit(sizes, np.log([run.tokens for run in runs]), 1)
    tokens = float(np.exp(np.polyval(fit, parabola.vertex)))
    return Optimum(runs[0].budget, weights, tokens, parabola(weights))


def _exponent(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


@dataclasses.dataclass(frozen=True)
class Surface:
    """L(N, D) = E + A / N^α + B / D^β."""

    floor: float
    size: float
    data: float
    alpha: float
    beta: float

    def __call__(self, weights: float, tokens: float) -> float:
        """The loss of a model of N weights after D tokens."""
        return self.floor + self.size / weights**self.alpha + self.data / tokens**self.beta

    @property
    def a(self) -> float:
        """Exponent of the best N in C, for a cost proportional to N · D."""
        return self.beta / (self.alpha + self.beta)


# Starts of the search, as exponents and logs of the coefficients.
STARTS = [(a, b) for a in (0.2, 0.5, 1.0) for b in (0.2, 0.5, 1.0)]


def fit_surface(runs: Sequence[Run], starts: Sequence[tuple[float, float]] = STARTS) -> Surface:
    """The surface with the smallest Huber loss of log L.

    Raises:
      ValueError: fewer runs than the surface has parameters.
    """
    if len(runs) < 6:
        raise ValueError(f"{len(runs)} runs do not determine five parameters; train at least six")
    n, d = (np.log([getattr(run, name) for run in runs]) for name in ("weights", "tokens"))
    loss = np.log([run.loss for run in runs])
    n0, d0 = n.mean(), d.mean()  # coefficients refer to the middle of the grid

    def terms(x: np.ndarray) -> np.ndarray:
        log_floor, log_size, log_data, alpha, beta = x
        floor = np.full_like(n, log_floor)
        return np.stack([floor, log_size - alpha * (n - n0), log_data - beta * (d - d0)])

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        parts = terms(x)
        total = scipy.special.logsumexp(parts, axis=0)
        error = (total - loss) / HUBER
        shares = np.exp(parts - total)
        pull = np.clip(error, -1, 1)
        by_part = shares * pull
        slopes = np.array([
            *by_part.sum(1), -(by_part[1] * (n - n0)).sum(), -(by_part[2] * (d - d0)).sum()
        ])  # fmt: skip
        return float(HUBER * scipy.special.huber(1.0, error).sum()), slopes

    third = loss.mean() - np.log(3)
    found = [
        scipy.optimize.minimize(
            objective,
            np.array([third, third, third, a, b]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(None, None)] * 3 + [(0.01, 3.0)] * 2,
            options={"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-10},
        )
        for a, b in starts
    ]
    log_floor, log_size, log_data, alpha, beta = min(found, key=lambda one: one.fun).x
    size, data = np.exp(log_size + alpha * n0), np.exp(log_data + beta * d0)
    return Surface(*map(float, (np.exp(log_floor), size, data, alpha, beta)))


class PowerLaw(NamedTuple):
    """y = floor + factor / x^exponent."""

    floor: float
    factor: float
    exponent: float

    @property
    def undetermined(self) -> bool:
        """Whether the exponent is an end of the range that was searched, so that another one may
        fit better. At the lower end, y falls like the logarithm of x."""
        return min(abs(self.exponent - end) for end in POWERS) < 1e-3

    def __call__(self, x: float) -> float:
        return self.floor + self.factor / x**self.exponent


def fit_power(points: Sequence[tuple[float, float]]) -> PowerLaw:
    """The power law of least squares through some (x, y); floor and factor are not negative.

    For each exponent, the other two follow from a linear fit, so the search has one dimension.

    Raises:
      ValueError: fewer than four different x.
    """
    x, y = np.array(points, float).T
    if len(np.unique(x)) < 4:
        raise ValueError(f"{len(np.unique(x))} values of x do not determine a power law; use four")

    def coefficients(exponent: float) -> tuple[np.ndarray, float]:
        columns = np.stack([np.ones_like(x), (x / x.max()) ** -exponent], axis=1)
        return scipy.optimize.nnls(columns, y)

    best = scipy.optimize.minimize_scalar(
        lambda exponent: coefficients(exponent)[1], bounds=POWERS, method="bounded"
    ).x
    (floor, factor), _ = coefficients(best)
    return PowerLaw(float(floor), float(factor * x.max() ** best), float(best))


def level_seeds(losses: Mapping[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    """Losses by (variant, seed), without the factor by which all losses of a seed differ from those
    of the others.

    Seeds are measured on their own held-out rows, and can have their own encoders, so what they
    predict can be easier or harder. The factors come from the variants that all seeds have.

    Raises:
      ValueError: there is no such variant.
    """
    seeds = {seed for _, seed in losses}
    variants = dict.fromkeys(variant for variant, _ in losses)
    common = [one for one in variants if all((one, seed) in losses for seed in seeds)]
    if not common:
        raise ValueError("no variant was trained with all seeds, so they cannot be compared")
    levels = {seed: np.mean([np.log(losses[v, seed]) for v in common]) for seed in seeds}
    mean = np.mean(list(levels.values()))
    return {key: float(loss * np.exp(mean - levels[key[1]])) for key, loss in losses.items()}


def bootstrap(
    runs: Sequence[T],
    estimate: Callable[[Sequence[T]], float],
    *,
    within: Callable[[T], float] = operator.attrgetter("budget"),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The estimate from all runs, and percentiles of those from runs drawn with replacement.

    Draws for which there is no estimate (ValueError or NaN) are left out.

    Args:
      within: gives the group of a run; runs are drawn within each group.

    Raises:
      ValueError: more than half of the draws have no estimate.
    """
    rng = np.random.default_rng(seed)
    keys = sorted({within(run) for run in runs})
    groups = [[run for run in runs if within(run) == key] for key in keys]
    found = []
    for _ in range(resamples):
        drawn = [group[i] for group in groups for i in rng.integers(len(group), size=len(group))]
        try:
            found.append(estimate(drawn))
        except ValueError:
            continue
    found = [value for value in found if np.isfinite(value)]
    if len(found) < resamples / 2:
        raise ValueError(
            f"only {len(found)} of {resamples} draws of runs have an estimate; train more budgets, "
            "sizes or seeds"
        )
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(estimate(runs)), float(low), float(high))
