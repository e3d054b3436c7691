"""Plots a score of runs of reinforcement learning against the CPU time that they took.

    python -m experiments.objectives_figure --before=runs/before-0 \\
      --run=DiffusionNFT,runs/u4g-0,103 --run=Flow-GRPO,runs/grpo-0,119 --figure=objectives.png

Each run is a name, a workdir, and the seconds of CPU time of its `unicom train`, as `time` prints
them (user + sys). `unicom evaluate` replaces the scores of the step before, so copies are kept:

    for step in 10 20 34; do
      unicom evaluate --workdir=runs/u4g-0 --suite=generations --no-baseline --step=$step
      cp runs/u4g-0/scores.json runs/u4g-0/scores-$step.json
    done

All files `scores*.json` of a workdir are read; each names the step that it is of. The CPU time at a
step is `--start` seconds, for the start and compilation, and a share of the rest. The points of
`--before`, the score of the weights that all runs start from, are at no cost. The table of what is
drawn is printed.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.scaling_figure import FAINT, HELD_OUT, INK, SMALL, style
from unicom_jax.evaluation.intervals import Interval
from unicom_jax.evaluation.scores import read_about, read_scores
from unicom_jax.runs.stages import UNIFIED
from unicom_jax.runs.workdir import read_json

SCORE = "generation/overall"
LOOKS = ((HELD_OUT, "o"), (INK, "s"), (FAINT, "D"), ("#2563a8", "^"))  # of runs, in turns


@dataclasses.dataclass(frozen=True)
class Point:
    """A score with its interval, and the step and the CPU seconds at which it was reached."""

    step: int
    seconds: float
    score: Interval


def points_of(workdir: Path, score: str, total: float, start: float) -> list[Point]:
    """The evaluations of a run, by step.

    Args:
      total: CPU seconds of the run.
      start: how many of them passed before its first step.

    Raises:
      ValueError: there is none, a file is damaged, or they are of several stages.
    """
    if total < start:
        raise ValueError(f"{workdir}: {total:g} seconds in all are fewer than --start={start:g}")
    found, stages = {}, set()
    for path in sorted(workdir.glob("scores*.json")):
        stage, step, interval = _read(path, score)
        stages.add(stage)
        facts = read_json(workdir / stage / "stage.json", ValueError, "train the run to its end")
        found[step] = Point(step, start + (total - start) * step / facts["steps"], interval)
    if not found:
        raise ValueError(f"{workdir} has no scores.json; run unicom evaluate --workdir={workdir}")
    if len(stages) > 1:
        raise ValueError(
            f"{workdir} has scores of several stages ({', '.join(sorted(stages))}), whose steps "
            "are counted separately; keep the files scores*.json of one of them"
        )
    return [found[step] for step in sorted(found)]


def start_of(workdir: Path, score: str) -> Point:
    """The score of the weights from which all runs start, at no cost."""
    return Point(0, 0.0, _read(workdir / "scores.json", score)[2])


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


def draw(runs: dict[str, list[Point]], path: Path, score: str = SCORE) -> None:
    """Writes the plot in the format of the path's ending."""
    figure = Figure(figsize=(6, 3.8), facecolor="white", layout="constrained")
    ax = figure.subplots()
    for place, (name, points) in enumerate(runs.items()):
        colour, marker = LOOKS[place % len(LOOKS)]
        values = [100 * one.score.value for one in points]
        around = [
            [100 * (one.score.value - one.score.low) for one in points],
            [100 * (one.score.high - one.score.value) for one in points],
        ]
        minutes = [one.seconds / 60 for one in points]
        ax.errorbar(minutes, values, around, color=colour, marker=marker, capsize=3, label=name)
    ax.set_xlabel("CPU minutes")
    ax.set_ylabel(f"{score} (%)")
    ax.legend(fontsize=SMALL, frameon=False)
    style(ax)
    figure.savefig(path, dpi=130)


def table(runs: dict[str, list[Point]]) -> list[str]:
    """What is drawn, in Markdown."""
    lines = ["| run | step | CPU minutes | score |", "|---|---|---|---|"]
    for name, points in runs.items():
        for one in points:
            value, low, high = (100 * end for end in one.score)
            score = f"{value:.1f}% ({low:.0f}–{high:.0f})"
            lines.append(f"| {name} | {one.step} | {one.seconds / 60:.1f} | {score} |")
    return lines


def run_of(text: str) -> tuple[str, Path, float]:
    """The name, the workdir and the CPU seconds of a `--run`.

    Raises:
      ArgumentTypeError: it is something else.
    """
    try:
        name, workdir, seconds = text.split(",")
        return name, Path(workdir), float(seconds)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not NAME,WORKDIR,SECONDS") from None


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.objectives_figure")
    parser.add_argument(
        "--run",
        dest="runs",
        action="append",
        required=True,
        type=run_of,
        metavar="NAME,WORKDIR,SECONDS",
        help="a run and its CPU time; give the flag once for each",
    )
    parser.add_argument("--before", type=Path, help="workdir that has the score of the start")
    parser.add_argument("--start", type=float, default=20.0, help="CPU seconds before a first step")
    parser.add_argument("--score", default=SCORE, help="a score that is a share")
    parser.add_argument("--figure", type=Path, required=True, help="the file to write")
    options = parser.parse_args(argv)
    try:
        first = [start_of(options.before, options.score)] if options.before else []
        runs = {
            name: [*first, *points_of(workdir, options.score, seconds, options.start)]
            for name, workdir, seconds in options.runs
        }
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print("\n".join(table(runs)))
    try:
        draw(runs, options.figure, options.score)
    except (OSError, ValueError) as error:
        raise SystemExit(f"--figure={options.figure}: {error}") from error


if __name__ == "__main__":
    main()
