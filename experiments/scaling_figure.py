"""Plots of the scaling laws of `experiments.scaling`, one row for each loss.

loss against weights, a parabola for each budget, with its minimum
the best weights and their tokens against operations
the measured losses of runs of large budgets and of held-out runs, beside those of the surface that
is fitted to the former
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatterSciNotation, NullFormatter

from unicom_jax.sweeps.laws import IsoFlop, Run, at_least, budgets_of, fit_surface, iso_flop

INK, FAINT, HELD_OUT = "#1f2933", "#9aa5b1", "#c81e5b"
SMALL = 8  # points
MARGIN = 1.15  # how far fits are drawn beyond what was measured

Runs = tuple[Sequence[Run], Sequence[Run]]  # of the grid, and held out


def draw(found: Mapping[str, Runs], large: float, path: Path) -> None:
    """Writes a figure in the format of the path's ending.

    Args:
      found: the runs of the grid and the held-out ones, by the name of their loss.
      large: budgets from this one on predict the held-out runs.
    """
    figure = Figure(figsize=(11, 3.4 * len(found)), facecolor="white", layout="constrained")
    rows = figure.subplots(len(found), 3, squeeze=False)
    for axes, (name, (grid, held_out)) in zip(rows, found.items(), strict=True):
        laws, colours = iso_flop(grid), _colours(budgets_of(grid))
        _draw_parabolas(axes[0], grid, laws, colours)
        axes[0].set_ylabel(f"loss of {name}")
        _draw_growth(axes[1], laws)
        _draw_prediction(axes[2], at_least(large, grid), held_out, colours)
        for ax in axes:
            style(ax)
    figure.savefig(path, dpi=130)


def _colours(budgets: Sequence[float]) -> dict[float, tuple[float, ...]]:
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(budgets)))
    return dict(zip(budgets, map(tuple, shades), strict=True))


def _operations(budget: float) -> str:
    """A budget as the page writes it, such as 1.5e11."""
    return f"{budget:.2g}".replace("e+", "e")


def _draw_parabolas(
    ax: Axes, runs: Sequence[Run], laws: IsoFlop, colours: Mapping[float, tuple[float, ...]]
) -> None:
    for budget, colour in colours.items():
        own = [run for run in runs if run.budget == budget]
        sizes = [run.weights for run in own]
        ax.plot(sizes, [run.loss for run in own], ".", color=colour, markersize=4)
        xs = np.geomspace(min(sizes) / MARGIN, max(sizes) * MARGIN, 60)
        ys = [laws.parabolas[budget](x) for x in xs]
        ax.plot(xs, ys, color=colour, linewidth=1, label=_operations(budget))
    for one in laws.optima:
        ax.plot(one.weights, one.loss, "*", color=HELD_OUT, markersize=9)
    ax.set_xscale("log")
    ax.set_xlabel("weights N")
    ax.legend(title="operations", fontsize=SMALL, title_fontsize=SMALL, frameon=False)


def _draw_growth(ax: Axes, laws: IsoFlop) -> None:
    for name, of, exponent, marker in (("N*", "weights", "a", "o"), ("D*", "tokens", "b", "s")):
        costs = np.array([one.budget for one in laws.optima])
        best = np.array([getattr(one, of) for one in laws.optima])
        ax.plot(costs, best, marker, color=INK, markersize=5)
        if len(costs) > 1:
            slope = getattr(laws, exponent)
            level = np.mean(np.log(best) - slope * np.log(costs))
            xs = np.geomspace(costs.min() / MARGIN, costs.max() * MARGIN, 2)
            ax.plot(xs, np.exp(level) * xs**slope, color=FAINT, linewidth=1)
            label = f"{name} ∝ C^{slope:.2f}"
        else:
            label = name
        if len(costs):
            above = {"xytext": (0, 8), "textcoords": "offset points", "ha": "right", "va": "bottom"}
            ax.annotate(label, (costs[-1], best[-1]), fontsize=SMALL, **above)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.margins(y=0.2)  # for the label above the highest point
    ax.set_xlabel("operations C")
    ax.set_ylabel("best weights N*, their tokens D*")


def _draw_prediction(
    ax: Axes,
    grid: Sequence[Run],
    held_out: Sequence[Run],
    colours: Mapping[float, tuple[float, ...]],
) -> None:
    surface = fit_surface(grid)
    for budget in budgets_of(grid):
        own = [run for run in grid if run.budget == budget]
        fitted = [surface(run.weights, run.tokens) for run in own]
        ax.plot(fitted, [run.loss for run in own], ".", color=colours[budget], markersize=4)
    for budget, marker in zip(budgets_of(held_out), itertools.cycle("DsX"), strict=False):
        own = [run for run in held_out if run.budget == budget]
        predicted = [surface(run.weights, run.tokens) for run in own]
        label = f"held out, {_operations(budget)}"
        losses = [run.loss for run in own]
        ax.plot(predicted, losses, marker, color=HELD_OUT, markersize=5, label=label)
    every = [run.loss for run in (*grid, *held_out)]
    ends = [min(every), max(every)]
    ax.plot(ends, ends, color=FAINT, linewidth=1, zorder=0, label="exact")
    ax.set_xlabel("loss predicted from large budgets")
    ax.set_ylabel("measured loss")
    ax.legend(fontsize=SMALL, frameon=False)


def style(ax: Axes) -> None:
    """What all panels have in common."""
    ax.tick_params(labelsize=SMALL, color=FAINT)
    for which in ("x", "y"):
        axis = getattr(ax, f"{which}axis")
        if axis.get_scale() == "log":
            axis.set_major_formatter(LogFormatterSciNotation())
            axis.set_minor_formatter(NullFormatter())
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
