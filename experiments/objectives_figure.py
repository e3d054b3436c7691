"""Plots a score of runs of reinforcement learning against the CPU time that they took.

    python -m experiments.objectives_figure --figure=objectives.png \\
      --run=DiffusionNFT,runs/nft-0,197,runs/before-0 \\
      --run=DiffusionNFT,runs/nft-1,210,runs/before-1 \\
      --run=Flow-GRPO,runs/grpo-0,225,runs/before-0 \\
      --run=Flow-GRPO,runs/grpo-1,220,runs/before-1

Each run is a name, a workdir, the seconds of CPU time of its `unicom train`, as `time` prints them
(user + sys), and, if it is to be drawn, a workdir that has the score of the weights from which it
starts, at no cost. Runs of one name are seeds and become one curve: their mean, a band for the
range over the seeds, and a thin line for each seed. The band of a single run is the 95% interval
over its prompts. The table of what is drawn is printed.

`unicom evaluate` replaces the scores of the step before, so copies are kept:

    for step in 25 50 75 100; do
      unicom evaluate --workdir=runs/nft-0 --suite=generations --no-baseline --step=$step
      cp runs/nft-0/scores.json runs/nft-0/scores-$step.json
    done

All files `scores*.json` of a workdir are read; each names the step that it is of. The CPU time at a
step is `--start` seconds, for the start and compilation, and a share of the rest.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.scaling_figure import FAINT, HELD_OUT, INK, SMALL, style
from unicom_jax.evaluation.intervals import Interval
from unicom_jax.evaluation.scores import read_about, read_scores
from unicom_jax.runs.stages import UNIFIED
from unicom_jax.runs.workdir import read_json

SCORE = "generation/overall"
TITLES = {SCORE: "Scenes-GenEval"}  # of the axis; other scores have their own names
LOOKS = ((HELD_OUT, "o"), (INK, "s"), (FAINT, "D"), ("#2563a8", "^"))  # of curves, in turns


@dataclasses.dataclass(frozen=True)
class Point:
    """A score, and the step and the CPU seconds at which it was reached."""

    step: int
    seconds: float
    score: Interval


@dataclasses.dataclass(frozen=True)
class Curve:
    """The points of runs that differ by their seed.

    Attributes:
      runs: those of each run, all at the same steps.
    """

    runs: tuple[list[Point], ...]

    @property
    def mean(self) -> list[Point]:
        """The means over the runs, with their range; a single run has its own intervals."""
        if len(self.runs) == 1:
            return self.runs[0]
        found = []
        for points in zip(*self.runs, strict=True):
            values = [one.score.value for one in points]
            around = Interval(fmean(values), min(values), max(values))
            found.append(Point(points[0].step, fmean(one.seconds for one in points), around))
        return found


@dataclasses.dataclass(frozen=True)
class Run:
    """What `--run` says: `seconds` is all CPU time, `before` has the score of the start."""

    name: str
    workdir: Path
    seconds: float
    before: Path | None = None


def points_of(run: Run, score: str, start: float) -> list[Point]:
    """The evaluations of a run, by step.

    Args:
      start: how many CPU seconds passed before its first step.

    Raises:
      ValueError: there is none, a file is damaged, or they are of several stages.
    """
    workdir = run.workdir
    if run.seconds < start:
        raise ValueError(f"{workdir}: {run.seconds:g} s in all are fewer than --start={start:g}")
    found, stages = {}, set()
    for path in sorted(workdir.glob("scores*.json")):
        stage, step, interval = _read(path, score)
        stages.add(stage)
        facts = read_json(workdir / stage / "stage.json", ValueError, "train the run to its end")
        share = step / facts["steps"]
        found[step] = Point(step, start + (run.seconds - start) * share, interval)
    if not found:
        raise ValueError(f"{workdir} has no scores.json; run unicom evaluate --workdir={workdir}")
    if len(stages) > 1:
        raise ValueError(
            f"{workdir} has scores of several stages ({', '.join(sorted(stages))}), whose steps "
            "are counted separately; keep the files scores*.json of one of them"
        )
    if run.before:
        found[0] = Point(0, 0.0, _read(run.before / "scores.json", score)[2])
    return [found[step] for step in sorted(found)]


def _read(path: Path, score: str) -> tuple[str, int, Interval]:
    """The stage and the step of a file of scores, and the score."""
    scores, used = read_scores(path), read_about(path).get("checkpoints", {})
    if UNIFIED.part not in used:
        raise ValueError(f"{path} does not say which checkpoint it is of; evaluate the run again")
    found = [scores.get(f"{score}{end}") for end in ("", ".low", ".high")]
    if None in found:
        raise ValueError(f"{path} has no score {score}; evaluate the suite that it belongs to")
    stage, step = used[UNIFIED.part].split()
    return stage, int(step), Interval(*found)


def curves_of(runs: Sequence[Run], score: str, start: float) -> dict[str, Curve]:
    """The curve of each name, in the order in which the names appear.

    Raises:
      ValueError: runs of one name have scores at different steps; see also `points_of`.
    """
    found: dict[str, tuple[list[Point], ...]] = {}
    for run in runs:
        found[run.name] = (*found.get(run.name, ()), points_of(run, score, start))
    for name, seeds in found.items():
        steps = sorted({tuple(one.step for one in points) for points in seeds})
        if len(steps) > 1:
            shown = " and at ".join(", ".join(map(str, each)) for each in steps)
            raise ValueError(
                f"runs of {name} have scores at steps {shown}; evaluate them at the same ones"
            )
    return {name: Curve(seeds) for name, seeds in found.items()}


def draw(curves: dict[str, Curve], path: Path, score: str = SCORE) -> None:
    """Writes the plot in the format of the path's ending."""
    figure = Figure(figsize=(6, 3.8), facecolor="white", layout="constrained")
    ax = figure.subplots()
    for place, (name, curve) in enumerate(curves.items()):
        colour, marker = LOOKS[place % len(LOOKS)]
        _draw_curve(ax, name, curve, colour, marker)
    ax.set_xlabel("CPU minutes")
    ax.set_ylabel(f"{TITLES.get(score, score)} (%)")
    ax.set_xlim(left=0)
    ax.grid(axis="y", color=FAINT, alpha=0.3, linewidth=0.6)
    ax.legend(fontsize=SMALL, frameon=False, loc="upper left")
    style(ax)
    figure.savefig(path, dpi=130)


def _draw_curve(ax: Axes, name: str, curve: Curve, colour: str, marker: str) -> None:
    minutes = [one.seconds / 60 for one in curve.mean]
    values, lows, highs = 100 * np.array([one.score for one in curve.mean]).T
    ax.fill_between(minutes, lows, highs, color=colour, alpha=0.12, linewidth=0)
    if len(curve.runs) > 1:
        name = f"{name}, {len(curve.runs)} seeds"
        for points in curve.runs:
            xs = [one.seconds / 60 for one in points]
            ys = [100 * one.score.value for one in points]
            ax.plot(xs, ys, color=colour, alpha=0.45, linewidth=0.8)
    ax.plot(minutes, values, color=colour, marker=marker, linewidth=2, label=name, clip_on=False)


def table(curves: dict[str, Curve]) -> list[str]:
    """What is drawn, in Markdown."""
    lines = ["| run | seeds | step | CPU minutes | score |", "|---|---|---|---|---|"]
    for name, curve in curves.items():
        for one in curve.mean:
            value, low, high = (100 * end for end in one.score)
            score = f"{value:.1f}% ({low:.0f}–{high:.0f})"
            seeds, minutes = len(curve.runs), one.seconds / 60
            lines.append(f"| {name} | {seeds} | {one.step} | {minutes:.1f} | {score} |")
    return lines


def run_of(text: str) -> Run:
    """The run of a `--run`.

    Raises:
      ArgumentTypeError: it is something else.
    """
    try:
        name, workdir, seconds, *before = text.split(",")
        return Run(name, Path(workdir), float(seconds), *map(Path, before))
    except (TypeError, ValueError):
        message = f"{text} is not NAME,WORKDIR,SECONDS or NAME,WORKDIR,SECONDS,BEFORE"
        raise argparse.ArgumentTypeError(message) from None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.objectives_figure")
    parser.add_argument(
        "--run",
        dest="runs",
        action="append",
        required=True,
        type=run_of,
        metavar="NAME,WORKDIR,SECONDS[,BEFORE]",
        help="a run, its CPU time, and the workdir that has the score of its start; give the flag "
        "once for each, with the same name for seeds of one curve",
    )
    parser.add_argument("--start", type=float, default=20.0, help="CPU seconds before a first step")
    parser.add_argument("--score", default=SCORE, help="a score that is a share")
    parser.add_argument("--figure", type=Path, required=True, help="the file to write")
    options = parser.parse_args(argv)
    try:
        curves = curves_of(options.runs, options.score, options.start)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print("\n".join(table(curves)))
    try:
        draw(curves, options.figure, options.score)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--figure={options.figure}: {error}") from error


if __name__ == "__main__":
    main()
