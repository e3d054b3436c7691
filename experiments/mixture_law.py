"""Fits how the losses of `experiments/sweeps/mixture.py` fall with the share of their documents.

    python -m experiments.mixture_law --workdir=runs/mixture --figure=mixture.png

Each loss is fitted as L = E + K / share^γ, where the share is that of the documents which the loss
is about: of drawings for drawing, of captions alone for text. Intervals are those of a bootstrap
over the seeds of each share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import app
from matplotlib.figure import Figure

from experiments.scaling_figure import FAINT, INK, SMALL, style
from experiments.sweep_rows import FIGURE, WORKDIR, ending, read_table
from experiments.sweeps import mixture
from unicom_jax.sweeps.laws import bootstrap, fit_power, level_seeds

LOSSES = {"text": mixture.ONLY_TEXT, "drawing": mixture.ONLY_FLOW}
SHARE_OF = {mixture.variant_name(share): share for share in mixture.SHARES}

Points = Sequence[tuple[float, float]]  # (share, loss)


def points_of(rows: Sequence[dict], name: str) -> list[tuple[float, float]]:
    """The share and the final loss of each run, without the factors of their seeds."""
    losses = {
        key: row["value"] for key, row in ending(rows, LOSSES[name]).items() if key[0] in SHARE_OF
    }
    if not losses:
        raise ValueError(f"no {LOSSES[name]} yet; let the sweep end")
    shares = {
        variant: share if name == "drawing" else 1 - share for variant, share in SHARE_OF.items()
    }
    return [(shares[variant], loss) for (variant, _), loss in level_seeds(losses).items()]


def summary(name: str, points: Points) -> list[str]:
    """The fit of one loss, in Markdown."""
    law = fit_power(points)
    if law.undetermined:
        interval = "γ is an end of the range that was searched, so this is no power law"
    elif len({share for share, _ in points}) == len(points):  # each draw would be these same points
        interval = "no interval, as each share has one seed"
    else:
        found = bootstrap(
            points, lambda some: fit_power(some).exponent, within=lambda one: one[0], resamples=200
        )
        interval = f"γ in [{found.low:.2f}, {found.high:.2f}]"
    lines = [f"### {name}", "", "| share | loss | fitted |", "|---|---|---|"]
    for share in sorted({share for share, _ in points}):
        mean = np.mean([loss for other, loss in points if other == share])
        lines.append(f"| {share:.0%} | {mean:.4f} | {law(share):.4f} |")
    formula = f"L = {law.floor:.3f} + {law.factor:.3g} / share^{law.exponent:.2f}"
    return [*lines, "", f"{formula}; {interval}", ""]


def draw(found: Mapping[str, Points], path: Path) -> None:
    """Writes a panel for each loss, in the format of the path's ending."""
    figure = Figure(figsize=(3.6 * len(found), 3.2), facecolor="white", layout="constrained")
    for ax, (name, points) in zip(figure.subplots(1, len(found)), found.items(), strict=True):
        law, shares = fit_power(points), np.array([share for share, _ in points])
        ax.plot(shares, [loss for _, loss in points], ".", color=INK)
        xs = np.linspace(shares.min(), shares.max(), 80)
        label = f"{law.floor:.3f} + {law.factor:.3g} / share^{law.exponent:.2f}"
        ax.plot(xs, [law(x) for x in xs], color=FAINT, linewidth=1, label=label)
        ax.set_xlabel("share of its documents")
        ax.set_ylabel(f"loss of {name}")
        ax.legend(fontsize=SMALL, frameon=False)
        style(ax)
    figure.savefig(path, dpi=130)


def main(argv: Sequence[str]) -> None:
    table, rows = read_table(argv, WORKDIR.value, "mixture")
    try:
        found = {name: points_of(rows, name) for name in LOSSES}
        for name, points in found.items():
            print("\n".join(summary(name, points)))
    except ValueError as error:
        raise SystemExit(f"{table}: {error}") from error
    if FIGURE.value:
        try:
            draw(found, Path(FIGURE.value))
        except (OSError, ValueError) as error:
            raise SystemExit(f"--figure={FIGURE.value}: {error}") from error


if __name__ == "__main__":
    app.run(main)
