"""Fits scaling laws to the runs of `experiments/sweeps/isoflop.py` and predicts its held-out runs.

    python -m experiments.scaling --workdir=runs/isoflop

Prints, for the text loss and the flow loss apart: the best size of each budget, the exponents a
and b of N* ∝ C^a and D* ∝ C^b with 95% intervals of a bootstrap over runs, the surface
L = E + A / N^α + B / D^β, and the losses that it predicts for the held-out runs beside the measured
ones, from all budgets and from the large ones alone. Then the difference of the two exponents a,
for which text and drawing are resampled together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from absl import app

from experiments import scaling_figure
from experiments.sweep_rows import FIGURE, WORKDIR, ending, read_table
from experiments.sweeps import isoflop
from unicom_jax.core.module import iter_specs
from unicom_jax.families.build import build_unified
from unicom_jax.sweeps.laws import (
    Run,
    Surface,
    at_least,
    bootstrap,
    budgets_of,
    fit_surface,
    iso_flop,
    level_seeds,
)

T = TypeVar("T")
Named = dict[tuple[str, int], Run]  # by variant and seed
LOSSES = {"text": isoflop.TEXT, "drawing": isoflop.FLOW}
WITHIN = 0.02  # a prediction should be this close
# Predictions are also made without smaller budgets, which mislead the surface: docs/scaling.md.
LARGE = 6e11
RESAMPLES = 200
GRID = {
    isoflop.variant_name(budget, width): (budget, width)
    for budget, widths in isoflop.WIDTHS.items()
    for width in widths
}
ONE_START = [(0.5, 0.5)]  # of the surface's exponents; resampled runs have similar ones


@functools.cache
def weights_of(width: int) -> int:
    """Trained weights of a model of the sweep, without tables of words."""
    config = isoflop.get_config()
    config.unified.transformer.update(isoflop.sizes(width))
    specs = iter_specs(build_unified(config).specs())
    return sum(spec.size for _, spec in specs if "vocab" not in spec.axes)


def runs_of(rows: Sequence[dict], score: str) -> tuple[Named, Named]:
    """The runs of the grid and the held-out ones, with a loss at their end.

    Raises:
      ValueError: a run of another sweep, or one without a finite loss.
    """
    last = ending(rows, score)
    if not last:
        return {}, {}
    levelled = level_seeds({key: row["value"] for key, row in last.items()})
    grid: Named = {}
    held_out: Named = {}
    for key, row in last.items():
        if (budget := isoflop.HELD_OUT.get(row["variant"])) is not None:
            width, found = isoflop.HELD_OUT_WIDTH, held_out
        else:
            if row["variant"] not in GRID:
                raise ValueError(
                    f"{row['variant']} is no variant of experiments/sweeps/isoflop.py; write that "
                    "sweep's table with unicom sweep table"
                )
            (budget, width), found = GRID[row["variant"]], grid
        found[key] = Run(budget, weights_of(width), row["tokens"], levelled[key])
    return grid, held_out


def summary(name: str, grid: Sequence[Run], held_out: Sequence[Run]) -> list[str]:
    """The fits of one loss, in Markdown."""
    found, surface = iso_flop(grid), fit_surface(grid)
    lines = [f"### {name}", "", "| operations | best weights | their tokens | loss |"]
    lines.append("|---|---|---|---|")
    lines += [
        f"| {one.budget:.1e} | {one.weights:,.0f} | {one.tokens:,.0f} | {one.loss:.4f} |"
        for one in found.optima
    ]
    if found.without:
        budgets = ", ".join(f"{budget:.1e}" for budget in found.without)
        lines += ["", f"Without a minimum among the sizes that were tried: {budgets}"]
    a, b = (_estimate(grid, lambda runs, of=of: getattr(iso_flop(runs), of)) for of in "ab")
    of_surface = _estimate(grid, lambda runs: fit_surface(runs, ONE_START).a)
    lines += [
        "",
        f"a = {a} from parabolas, {of_surface} from the surface; b = {b} from parabolas",
        f"L = {surface.floor:.3f} + {surface.size:.3g} / N^{surface.alpha:.2f} + "
        f"{surface.data:.3g} / D^{surface.beta:.2f}",
    ]
    lines += [_spread(grid, surface), ""]
    for budget in budgets_of(held_out):
        own = [run for run in held_out if run.budget == budget]
        lines += [_prediction(grid, own), _prediction(at_least(LARGE, grid), own)]
    return [*lines, ""]


def difference(text: Named, drawing: Named) -> str:
    """How much faster the best size grows for drawing than for text, of runs that have both losses;
    the others are named."""
    pairs = [(one, drawing[key]) for key, one in text.items() if key in drawing]

    def gap(pairs: Sequence[tuple[Run, Run]]) -> float:
        a = [iso_flop([pair[which] for pair in pairs]).a for which in (0, 1)]
        return a[1] - a[0]

    if not pairs:
        return "a of drawing - a of text = unknown (no run has both losses)"
    found = _estimate(pairs, gap, within=lambda pair: pair[0].budget)
    line = f"a of drawing - a of text = {found} from parabolas"
    missing = [
        f"{variant}, seed {seed} (no loss of {name})"
        for name, has, other in (("drawing", drawing, text), ("text", text, drawing))
        for variant, seed in sorted(other.keys() - has.keys())
    ]
    return f"{line}; without {'; '.join(missing)}" if missing else line


def _spread(grid: Sequence[Run], surface: Surface) -> str:
    """Root mean squares of how far runs are from the surface, and from other seeds' runs."""
    away = [run.loss / surface(run.weights, run.tokens) - 1 for run in grid]
    found = f"Runs differ from the surface by {np.sqrt(np.mean(np.square(away))):.1%}"
    alike: dict[tuple[float, float], list[float]] = {}
    for run in grid:
        alike.setdefault((run.budget, run.weights), []).append(np.log(run.loss))
    variances = [np.var(losses, ddof=1) for losses in alike.values() if len(losses) > 1]
    if variances:
        found += f", and seeds from the mean of theirs by {np.sqrt(np.mean(variances)):.1%}"
    return f"{found} (root mean square)."


def _estimate(runs: Sequence[T], exponent: Callable[[Sequence[T]], float], **options: Any) -> str:
    """An exponent and its interval, or that the runs do not determine it."""
    try:
        found = bootstrap(runs, exponent, resamples=RESAMPLES, **options)
    except ValueError as error:
        return f"unknown ({error})"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _prediction(grid: Sequence[Run], held_out: Sequence[Run]) -> str:
    """What the surface of some budgets says of runs of one size with another budget."""
    one, measured = held_out[0], float(np.mean([run.loss for run in held_out]))
    predicted = bootstrap(
        grid,
        lambda runs: fit_surface(runs, ONE_START)(one.weights, one.tokens),
        resamples=RESAMPLES,
    )
    error = predicted.value / measured - 1
    return (
        f"held-out run of {one.budget:.1e} operations, from budgets of {budgets_of(grid)[0]:.1e} "
        f"on: predicted {predicted.value:.4f} [{predicted.low:.4f}, {predicted.high:.4f}], "
        f"measured {measured:.4f} ({len(held_out)} seeds): {error:+.1%}, "
        f"{'within' if abs(error) <= WITHIN else 'NOT within'} {WITHIN:.0%}"
    )


def main(argv: Sequence[str]) -> None:
    table, rows = read_table(argv, WORKDIR.value, "isoflop")
    found = {}
    for name, score in LOSSES.items():
        try:
            found[name] = grid, held_out = runs_of(rows, score)
            if not grid:
                raise ValueError(f"no {score} yet; let the sweep end")
            print("\n".join(summary(name, list(grid.values()), list(held_out.values()))))
        except ValueError as error:
            raise SystemExit(f"{table}: {name}: {error}") from error
    print(difference(*(grid for grid, _ in found.values())))
    if FIGURE.value:
        try:
            runs = {
                name: tuple(list(some.values()) for some in both) for name, both in found.items()
            }
            scaling_figure.draw(runs, LARGE, Path(FIGURE.value))
        except (OSError, ValueError) as error:
            raise SystemExit(f"--figure={FIGURE.value}: {error}") from error


if __name__ == "__main__":
    app.run(main)
