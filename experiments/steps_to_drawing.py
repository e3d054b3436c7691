"""After how many steps, and operations, a share of the drawings of a sweep is correct.

    python -m experiments.steps_to_drawing --workdir=runs/sweeps/drawing_world

The drawings are those of the development split that a run with `sample_every` makes while it
trains. The share is the mean of `--scores`; between two evaluations it counts as a straight line,
which begins at 0 at step 0. Operations are those of the stage that draws, without what it shares.

Each variant is compared with the first one by the ratio of their steps, in pairs of equal seeds:
the geometric mean, with an interval of 95% of Student's t over the seeds. A run that does not get
there has no ratio.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence

from experiments.sweep_rows import read_table
from unicom_jax.config.flags import number
from unicom_jax.sweeps.compare import markdown
from unicom_jax.sweeps.statistics import Outcomes, effect_of

SCORES = ("pretrain:generation/single", "pretrain:generation/colours")
HEADINGS = ("share", "variant", "steps", "by seed", "operations", "steps against {first}")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run while it trained.

    Attributes:
      curve: (step, share of the drawings that are correct), in the order of the steps.
      each: operations of a step; NaN where they are not known.
    """

    curve: Sequence[tuple[float, float]]
    each: float

    def steps_to(self, share: float) -> float:
        """The first step at which the share is reached; infinite where it never is."""
        before = (0.0, 0.0)
        for step, value in self.curve:
            if value >= share:
                part = (share - before[1]) / (value - before[1])
                return before[0] + part * (step - before[0])
            before = (step, value)
        return math.inf


Runs = Mapping[str, Mapping[int, Run]]  # variant -> seed


def runs_of(rows: Sequence[dict], scores: Sequence[str]) -> Runs:
    """The runs of a sweep's table.

    Raises:
      ValueError: no run has all of the scores.
    """
    asked = {tuple(score.split(":")) for score in scores}
    found: dict[tuple[str, int], dict[int, list[dict]]] = {}
    for row in rows:
        if (row["stage"], row["metric"]) in asked:
            steps = found.setdefault((row["variant"], row["seed"]), {})
            steps.setdefault(row["step"], []).append(row)
    runs: dict[str, dict[int, Run]] = {}
    for (variant, seed), steps in found.items():
        if whole := {step: own for step, own in sorted(steps.items()) if len(own) == len(asked)}:
            means = [(s, sum(row["value"] for row in own) / len(own)) for s, own in whole.items()]
            runs.setdefault(variant, {})[seed] = Run(means, _operations(whole))
    if not runs:
        raise ValueError(f"no run has {' and '.join(scores)} yet")
    return runs


def _operations(steps: Mapping[int, Sequence[dict]]) -> float:
    """Of a step, from the operations that a run has spent at two of them."""
    spent = [(step, own[0]["flops"]) for step, own in steps.items()]
    (first, one), (last, other) = spent[0], spent[-1]
    return math.nan if None in (one, other) or first == last else (other - one) / (last - first)


def summary(runs: Runs, share: float) -> list[list[str]]:
    """A row of cells for each variant."""
    needed = {
        variant: {seed: run.steps_to(share) for seed, run in own.items()}
        for variant, own in runs.items()
    }
    first = next(iter(runs))
    lines = []
    for variant, own in runs.items():
        steps = [needed[variant][seed] for seed in sorted(own)]
        spent = [needed[variant][seed] * run.each for seed, run in own.items()]
        lines.append(
            [
                f"{share:.0%}",
                variant,
                _mean(steps, ".0f"),
                " / ".join(_shown(step, ".0f") for step in steps),
                _mean(spent, ".3g"),
                "–" if variant == first else _ratio(needed[variant], needed[first]),
            ]
        )
    return lines


def _mean(values: Sequence[float], form: str) -> str:
    """Of the runs that get there, and how many these are if not all do."""
    reached = [value for value in values if value != math.inf]
    if not reached:
        return "never"
    text = _shown(sum(reached) / len(reached), form)
    return text if len(reached) == len(values) else f"{text} in {len(reached)} of {len(values)}"


def _shown(value: float, form: str) -> str:
    if math.isnan(value):
        return "unknown"
    return "never" if value == math.inf else format(value, form)


def _ratio(own: Mapping[int, float], other: Mapping[int, float]) -> str:
    """The ratio over the seeds in which both runs get there."""
    both = [seed for seed in own if max(own[seed], other.get(seed, math.inf)) < math.inf]
    if not both:
        return "–"
    logs = ({seed: Outcomes(math.log(steps[seed])) for seed in both} for steps in (own, other))
    value, low, high = map(math.exp, effect_of(*logs).interval)
    text = f"× {value:.2f}"
    if len(both) > 1:
        text += f" ({low:.2f} to {high:.2f})"
    seeds = "1 seed" if len(both) == 1 else f"{len(both)} seeds"
    return text if len(both) == len(own) > 1 else f"{text}, {seeds}"


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0], prog="python -m experiments.steps_to_drawing"
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="of the sweep")
    parser.add_argument(
        "--share",
        type=number(float, 0.01, 1),
        nargs="+",
        default=[0.25, 0.5],
        metavar="S",
        help="that is to be reached; default 0.25 0.5",
    )
    parser.add_argument("--scores", nargs="+", default=SCORES, metavar="STAGE:generation/KIND")
    return parser


def main() -> None:
    args = make_parser().parse_args()
    table, rows = read_table(("",), args.workdir, "convergence")
    try:
        runs = runs_of(rows, args.scores)
    except ValueError as error:
        raise SystemExit(f"{table}: {error}") from error
    lines = [line for share in args.share for line in summary(runs, share)]
    headings = [heading.format(first=next(iter(runs))) for heading in HEADINGS]
    print(markdown(headings, lines))


if __name__ == "__main__":
    main()
