"""Comparisons as rows, for the terminal, Markdown, LaTeX and the report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from unicom_jax.evaluation.scores import style_of
from unicom_jax.sweeps.items import is_higher_better, outcomes_of
from unicom_jax.sweeps.plan import Plan
from unicom_jax.sweeps.runner import finished
from unicom_jax.sweeps.statistics import (
    BETTER,
    UNDECIDED,
    Effect,
    Outcomes,
    effect_of,
    holm,
    verdict,
)
from unicom_jax.sweeps.sweep import Contrast, Sweep, stage_of

SAME, OPPOSITE = "same sign as the claim", "opposite sign"
Measured = Mapping[str, Mapping[int, Outcomes]]  # variant -> seed -> a score


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A contrast with what was found.

    Attributes:
      effect: the better variant's score minus the other's; None where a run of one of them is
        missing, as `why` says.
      p: adjusted for the number of comparisons.
    """

    contrast: Contrast
    effect: Effect | None
    p: float = math.nan
    verdict: str = UNDECIDED
    why: str = ""


def compare(
    contrasts: Sequence[Contrast], scores: Mapping[str, Measured], *, claimed: bool = True
) -> list[Comparison]:
    """All contrasts, tested together.

    Args:
      scores: score -> what was measured.
      claimed: verdicts say whether the sign is that of the claim; else which one is better.
    """
    found: list[Comparison] = []
    for contrast in contrasts:
        measured = scores[contrast.score]
        sides = [measured.get(name, {}) for name in (contrast.better, contrast.worse)]
        try:
            found.append(Comparison(contrast, effect_of(*sides)))
        except ValueError as error:
            found.append(Comparison(contrast, None, why=_missing(contrast, measured) or str(error)))
    adjusted = holm([one.effect.p if one.effect else math.nan for one in found])
    return [_decided(one, p, claimed) for one, p in zip(found, adjusted, strict=True)]


def _missing(contrast: Contrast, measured: Measured) -> str:
    """Which variants of a contrast have no value of the score; "" if both have one."""
    none = [name for name in (contrast.better, contrast.worse) if not measured.get(name)]
    unscored = [name for name in none if name in measured]
    if unscored:
        return f"finished runs of {' and '.join(unscored)} have no such score"
    return f"no result of {' and '.join(none)}" if none else ""


def _decided(one: Comparison, p: float, claimed: bool) -> Comparison:
    if one.effect is None:
        return one
    found = verdict(one.effect, p, is_higher_better(one.contrast.score))
    if claimed and found != UNDECIDED:
        found = SAME if found == BETTER else OPPOSITE
    return dataclasses.replace(one, p=p, verdict=found)


def measured_of(plan: Plan, workdir: Path, scores: Sequence[str]) -> dict[str, Measured]:
    """What the finished runs of a plan have measured. A variant of which no run is finished is
    left out; one whose finished runs lack a score is empty."""
    found: dict[str, dict[str, dict[int, Outcomes]]] = {score: {} for score in scores}
    done = finished(plan, workdir)
    for run in plan.runs:
        if run.job.id not in done:
            continue
        for score in scores:
            outcomes = outcomes_of(run.job.folder(workdir), score)
            of_variant = found[score].setdefault(run.variant, {})
            if outcomes is not None:
                of_variant[run.seed] = outcomes
    return found


def compare_sweep(sweep: Sweep, plan: Plan, workdir: Path) -> list[Comparison]:
    """The contrasts of a sweep, from its finished runs."""
    scores = measured_of(plan, workdir, sweep.scores)
    return compare(sweep.compared(), scores, claimed=bool(sweep.contrasts))


# ---- as text -----------------------------------------------------------------------------------

HEADINGS = ("score", "first", "second", "difference", "95% interval", "p (Holm)", "n", "verdict")


def show(score: str, value: float | None, *, difference: bool = False) -> str:
    """A value of a score, or a difference of two with its sign."""
    if value is None or math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if stage_of(score) is not None:
        return f"{value:+.4g}" if difference else f"{value:.4g}"
    style = style_of(score)
    text = style.show(value)
    if style.unit not in ("%", ""):
        text += f" {style.unit}"
    return f"+{text}" if difference and value > 0 else text


def mean_of(measured: Mapping[int, Outcomes]) -> float | None:
    """Over seeds; None without any."""
    return float(np.mean([one.value for one in measured.values()])) if measured else None


def row_of(one: Comparison, measured: Measured) -> tuple[str, ...]:
    """The cells of a comparison, under `HEADINGS`. The means of the two variants are over the seeds
    that both have, so that they differ by the difference beside them."""
    contrast, effect = one.contrast, one.effect
    runs = {name: measured.get(name, {}) for name in (contrast.better, contrast.worse)}
    if effect is not None:  # which is over the seeds of both
        both = set.intersection(*map(set, runs.values()))
        runs = {name: {seed: found[seed] for seed in both} for name, found in runs.items()}
    sides = [f"{name} {show(contrast.score, mean_of(found))}" for name, found in runs.items()]
    if effect is None:
        return (contrast.score, *sides, "–", "–", "–", "–", f"{UNDECIDED}: {one.why}")
    ends = (effect.interval.low, effect.interval.high)
    low, high = (show(contrast.score, end, difference=True) for end in ends)
    pairs = f"{effect.pairs} {'seed' if effect.pairs == 1 else 'seeds'}"
    return (
        contrast.score,
        *sides,
        show(contrast.score, effect.interval.value, difference=True),
        f"{low} to {high}",
        "–" if math.isnan(one.p) else f"{one.p:.2g}",
        pairs + f" × {effect.count}" * bool(effect.count),
        one.verdict,
    )


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


TEX = {"\\": r"\textbackslash{}", "−": "$-$", "×": r"$\times$", "–": "--", "∞": r"$\infty$"}
TEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
TEX |= {sign: rf"\{sign}" for sign in "%_&#${}"}


def latex(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A `tabular` of booktabs."""

    def line(cells: Sequence[str]) -> str:
        escaped = ("".join(TEX.get(sign, sign) for sign in cell) for cell in cells)
        return f"{' & '.join(escaped)} \\\\"

    return "\n".join(
        [
            rf"\begin{{tabular}}{{{'l' * len(headings)}}}",
            r"\toprule",
            line(headings),
            r"\midrule",
            *map(line, rows),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )
