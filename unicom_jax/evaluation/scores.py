"""Scores with their intervals: naming them, writing them to `scores.json`, and printing them."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import rich.box
import rich.console
import rich.table
import rich.text
from rich.markup import escape

from unicom_jax.core.paths import as_path
from unicom_jax.evaluation.intervals import Interval, clustered_wilson, mean_interval
from unicom_jax.interop.atomic import write_text
from unicom_jax.runs.workdir import read_json

FACETS = ("n", "low", "high", "untrained", "untrained_low", "untrained_high", "chance")
ABOUT = "about"  # the key of scores.json that says how the scores were computed


@dataclasses.dataclass(frozen=True)
class Score:
    """One number of an evaluation.

    Attributes:
      name: "suite/quantity", for example "understanding/qa".
      interval: value and 95% interval.
      count: number of samples.
      chance: the score of a guess that ignores the picture or the prompt; None if that has no
        meaning. Each suite documents its own.
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
    form: str  # the number's format specification
    worst: float
    best: float | None  # None: the axis ends at the largest number shown

    def show(self, value: float | None) -> str:
        if value is None:
            return "–"
        scaled = 100.0 * value if self.unit == "%" else value
        return f"{scaled:{self.form}}{self.unit if self.unit == '%' else ''}"


PERCENT = Style("%", True, ".1f", 0.0, 1.0)
STYLES = {
    "reconstruction/psnr": Style("dB", True, ".2f", 0.0, None),
    "reconstruction/ssim": Style("", True, ".3f", 0.0, 1.0),
    "reconstruction/kid": Style("", False, ".3g", 0.0, None),
    "reconstruction/frechet": Style("", False, ".3f", 0.0, None),  # from runs before KID
    "generation/kid": Style("", False, ".3g", 0.0, None),
    "unified/cosine": Style("", True, ".3f", 0.0, 1.0),
    "unified/invented": Style("%", False, ".1f", 0.0, 1.0),
    "unified/caption_invented": Style("%", False, ".1f", 0.0, 1.0),
    "understanding/caption_f1": Style("", True, ".3f", 0.0, 1.0),
}
# The scores of each suite that an encoder measures: only values of one encoder can be compared.
OF_FEATURES = {
    "reconstructions": ("reconstruction/kid",),
    "generations": ("generation/retrieval", "generation/kid"),
    "unified": ("unified/cosine",),
}


def is_of_features(name: str) -> bool:
    """Whether an encoder measures a score."""
    return any(_whole(name) in names for names in OF_FEATURES.values())


def style_of(name: str) -> Style:
    """How a score of this name is shown: as a proportion unless the table says otherwise."""
    return STYLES.get(_whole(name), PERCENT)


def _whole(name: str) -> str:
    """SUITE/NAME of a score; one of a part, SUITE/NAME/PART, is treated like it."""
    return "/".join(name.split("/")[:2])


def proportion(
    name: str,
    outcomes: Sequence[bool],
    chance: float | None = None,
    clusters: Sequence[Hashable] | None = None,
) -> Score:
    """The share of successes with its Wilson interval; `clusters` as for `clustered_wilson`."""
    clusters = range(len(outcomes)) if clusters is None else clusters
    return Score(name, clustered_wilson(outcomes, clusters), len(outcomes), chance)


def graded(
    name: str, marks: Sequence[float], chance: float | None, clusters: Sequence[Hashable]
) -> Score:
    """The mean of marks from 0 to 1: a `proportion` if each is 0 or 1, else by Student's t.

    Marks of a single cluster say nothing about others, so their interval is [0, 1].
    """
    if set(marks) <= {0.0, 1.0}:
        return proportion(name, [mark == 1.0 for mark in marks], chance, clusters)
    if len(set(clusters)) == 1:
        return Score(name, Interval(sum(marks) / len(marks), 0.0, 1.0), len(marks), chance)
    return Score(name, mean_interval(marks, clusters, bounds=(0.0, 1.0)), len(marks), chance)


def flatten(
    scores: Sequence[Score], untrained: Sequence[Score] = ()
) -> dict[str, float | int | None]:
    """`name: value`, each followed by `name.<facet>` for all FACETS, in order.

    `untrained` are the same scores of a freshly initialised model; null if it was not run.
    """
    baseline = {score.name: score.interval for score in untrained}
    flat: dict[str, float | int | None] = {}
    for score in scores:
        before = baseline.get(score.name, (None, None, None))
        facets = (score.count, score.interval.low, score.interval.high, *before, score.chance)
        flat[score.name] = score.interval.value
        for facet, value in zip(FACETS, facets, strict=True):
            flat[f"{score.name}.{facet}"] = value
    return flat


def write_scores(
    path: str | os.PathLike[str],
    flat: Mapping[str, float | int | None],
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes flat scores as JSON, with `about` under a key of that name in front.

    A number that is not finite becomes null. The file is written atomically.
    """
    finite = {key: None if _not_finite(value) else value for key, value in flat.items()}
    text = json.dumps({ABOUT: dict(about or {}), **finite}, indent=2, allow_nan=False)
    write_text(as_path(path), text + "\n")


def read_scores(path: str | os.PathLike[str]) -> dict[str, float | int | None]:
    """The flat scores that `write_scores` wrote.

    Raises ValueError naming the file if it is not such a file.
    """
    return {key: value for key, value in _read(path).items() if key != ABOUT}


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """How the scores of a file were computed; {} if an older version wrote it."""
    return dict(_read(path).get(ABOUT, {}))


def _read(path: str | os.PathLike[str]) -> dict[str, Any]:
    return read_json(as_path(path), ValueError, "run the evaluation again")


def score_names(flat: Mapping[str, float | int | None]) -> list[str]:
    """The scores of a flat dict, without their facets, in order."""
    return [key for key in flat if f"{key}.n" in flat]


def standing(flat: Mapping[str, float | int | None], name: str) -> str:
    """ "above", "level" or "below": the score against the better of untrained and chance.

    "above" if the whole interval is better than chance and than the untrained model's whole
    interval, "below" if it is worse than one of them, "level" if they overlap; "" if there is
    nothing to compare with. A chance that equals the best possible value is ignored, since nothing
    could exceed it.
    """
    style = style_of(name)
    sign = 1 if style.higher_is_better else -1
    facet = {key: flat.get(f"{name}.{key}") for key in FACETS}
    low, high = _ends(facet["low"], facet["high"], sign)
    bars = [_ends(facet["untrained_low"], facet["untrained_high"], sign)]
    if facet["chance"] is not None and facet["chance"] != style.best:
        bars.append((sign * facet["chance"],) * 2)
    bars = [bar for bar in bars if bar[0] is not None]
    if not bars or low is None:
        return ""
    if all(low > best for _, best in bars):
        return "above"
    return "below" if any(high < worst for worst, _ in bars) else "level"


def _ends(
    low: float | None, high: float | None, sign: int
) -> tuple[float, float] | tuple[None, None]:
    """The ends of an interval, the worse one first, on a scale on which more is better."""
    if low is None or high is None:
        return None, None
    worse, better = sorted((sign * low, sign * high))
    return worse, better


COLOURS = {"above": "green", "level": "yellow", "below": "red", "": "default"}


def score_table(flat: Mapping[str, float | int | None], title: str = "scores") -> rich.table.Table:
    """The scores beside the untrained model and chance; green if `standing` is "above"."""
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
        untrained = show(flat.get(f"{name}.untrained"))
        arrow = "" if style.higher_is_better else " [dim]↓[/]"  # lower is better
        cells = (
            f"{escape(name)}{unit}{arrow}",
            f"[bold {colour}]{show(flat[name])}[/]",
            f"{show(flat.get(f'{name}.low'))}–{show(flat.get(f'{name}.high'))}",
            f"[dim]{untrained}[/]",
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
