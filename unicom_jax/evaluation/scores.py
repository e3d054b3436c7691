"""Scores with their intervals: how they are named, written to `scores.json` and printed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import rich.box
import rich.console
import rich.markup
import rich.table
import rich.text

from unicom_jax.evaluation.intervals import Interval, wilson

FACETS = ("n", "low", "high", "untrained", "chance")


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of an evaluation.

    Attributes:
      name: "suite/quantity", for example "understanding/qa".
      interval: value and 95% interval.
      count: number of samples behind it.
      chance: what somebody scores who never looks at the picture or the prompt; None where that has
        no meaning. Each suite says how it is taken.
    """

    name: str
    interval: Interval
    count: int
    chance: float | None = None


@dataclasses.dataclass(frozen=True)
class Style:
    """How scores of one unit are shown; `worst` and `best` end the axis of the report's bars."""

    unit: str  # "%" is shown as 100 times the value
    higher_is_better: bool
    digits: int
    worst: float
    best: float | None  # None: the axis ends at the largest number shown

    def show(self, value: float | None) -> str:
        if value is None:
            return "–"
        scaled = 100.0 * value if self.unit == "%" else value
        return f"{scaled:.{self.digits}f}{self.unit if self.unit == '%' else ''}"


PERCENT = Style("%", True, 1, 0.0, 1.0)
STYLES = {
    "reconstruction/psnr": Style("dB", True, 2, 0.0, None),
    "reconstruction/ssim": Style("", True, 3, 0.0, 1.0),
    "reconstruction/frechet": Style("", False, 3, 0.0, None),
    "understanding/caption_f1": Style("", True, 3, 0.0, 1.0),
}


def style_of(name: str) -> Style:
    """How a score of this name is shown; proportions unless the table says otherwise."""
    return STYLES.get(name, PERCENT)


def proportion(name: str, outcomes: Sequence[bool], chance: float | None = None) -> Score:
    """The share of successes with its Wilson interval."""
    return Score(name, wilson(sum(outcomes), len(outcomes)), len(outcomes), chance)


def flatten(
    scores: Sequence[Score], untrained: Sequence[Score] = ()
) -> dict[str, float | int | None]:
    """`name: value` with `name.n`, `.low`, `.high`, `.untrained`, `.chance` beside each, in order.

    `untrained` are the same scores of a freshly initialised model; null where it was not run.
    """
    baseline = {score.name: score.interval.value for score in untrained}
    flat: dict[str, float | int | None] = {}
    for score in scores:
        facets = (score.count, score.interval.low, score.interval.high, baseline.get(score.name))
        flat[score.name] = score.interval.value
        for facet, value in zip(FACETS, (*facets, score.chance), strict=True):
            flat[f"{score.name}.{facet}"] = value
    return flat


def write_scores(path: str | os.PathLike[str], flat: Mapping[str, float | int | None]) -> None:
    """Writes flat scores as JSON; a number that is not finite becomes null, which JSON can say."""
    finite = {key: None if _not_finite(value) else value for key, value in flat.items()}
    Path(path).write_text(json.dumps(finite, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_scores(path: str | os.PathLike[str]) -> dict[str, float | int | None]:
    """Reads what `write_scores` wrote. Raises ValueError naming the file if it is not that."""
    try:
        flat = json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); run the evaluation again") from None
    if not isinstance(flat, dict):
        raise ValueError(f"{path}: expected flat `name: value` pairs; run the evaluation again")
    return flat


def score_names(flat: Mapping[str, float | int | None]) -> list[str]:
    """The scores of a flat dict, without their facets, in order."""
    return [key for key in flat if key.rpartition(".")[2] not in FACETS]


def standing(flat: Mapping[str, float | int | None], name: str) -> str:
    """ "above", "level" or "below": the score against the better of untrained and chance.

    "level" when the interval reaches over the baseline; "" when there is nothing to compare with.
    """
    baselines = [flat.get(f"{name}.{facet}") for facet in ("untrained", "chance")]
    baselines = [value for value in baselines if value is not None]
    value, low, high = (flat.get(key) for key in (name, f"{name}.low", f"{name}.high"))
    if not baselines or value is None or low is None or high is None:
        return ""
    if style_of(name).higher_is_better:
        bar = max(baselines)
        return "above" if low > bar else "below" if high < bar else "level"
    bar = min(baselines)
    return "above" if high < bar else "below" if low > bar else "level"


COLOURS = {"above": "green", "level": "yellow", "below": "red", "": "default"}


def score_table(flat: Mapping[str, float | int | None], title: str = "scores") -> rich.table.Table:
    """The scores beside the untrained model and chance; green where the whole interval is up."""
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("score", no_wrap=True)
    for heading in ("value", "95% interval", "untrained", "chance", "n"):
        table.add_column(heading, justify="right", no_wrap=True)
    suite = None
    for name in score_names(flat):
        if suite not in (None, name.partition("/")[0]):
            table.add_section()
        suite = name.partition("/")[0]
        style = style_of(name)
        show = style.show
        colour = COLOURS[standing(flat, name)]
        unit = f" [dim]{style.unit}[/]" if style.unit not in ("", "%") else ""
        arrow = "" if style.higher_is_better else " [dim]↓[/]"  # lower is better
        cells = (
            f"{rich.markup.escape(name)}{unit}{arrow}",
            f"[bold {colour}]{show(flat[name])}[/]",
            f"{show(flat.get(f'{name}.low'))}–{show(flat.get(f'{name}.high'))}",
            f"[dim]{show(flat.get(f'{name}.untrained'))}[/]",
            f"[dim]{show(flat.get(f'{name}.chance'))}[/]",
            f"[dim]{flat.get(f'{name}.n')}[/]",
        )
        table.add_row(*map(rich.text.Text.from_markup, cells))
    return table


def print_scores(
    flat: Mapping[str, float | int | None], console: rich.console.Console | None = None
) -> None:
    """Prints the table of `score_table`."""
    (console or rich.console.Console()).print(score_table(flat))


def _not_finite(value: float | int | None) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
