"""A sweep on one self-contained HTML page, in the style of a run's report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from unicom_jax.evaluation.charts import Series, line_chart
from unicom_jax.evaluation.report import REPORT_FILE, environment
from unicom_jax.interop.atomic import write_text
from unicom_jax.sweeps.compare import (
    OPPOSITE,
    SAME,
    Comparison,
    Measured,
    compare_sweep,
    mean_of,
    measured_of,
    row_of,
    show,
)
from unicom_jax.sweeps.outcomes import read_outcomes
from unicom_jax.sweeps.plan import Plan
from unicom_jax.sweeps.results import Rows, rows_of
from unicom_jax.sweeps.runner import finished, reasons, spent
from unicom_jax.sweeps.statistics import BETTER, UNDECIDED, WORSE
from unicom_jax.sweeps.sweep import Sweep

TEMPLATES = Path(__file__).parent / "templates"
HUES = 7  # colours of variants in report.css
STANDINGS = {SAME: "above", BETTER: "above", OPPOSITE: "below", WORSE: "below", UNDECIDED: "level"}
AXES = {
    "step": "steps",
    "flops": "operations",
    "cpu_seconds": "CPU seconds",
    "device_seconds": "device seconds",
}


@dataclasses.dataclass(frozen=True)
class Line:
    """A comparison: its cells, its colour, and its interval in percent of an axis around 0."""

    cells: tuple[str, ...]
    standing: str
    paper: str
    marks: Mapping[str, float]


def write_report(sweep: Sweep, plan: Plan, workdir: Path, results: Path | None = None) -> Path:
    """Writes `WORKDIR/report.html` from what is done so far, and returns its path.

    Args:
      results: the folder with the results, as of `results_here`; None: the workdir.
    """
    view = _view(sweep, plan, workdir if results is None else results)
    view["name"] = workdir.resolve().name
    page = environment(TEMPLATES).get_template("sweep.html.j2").render(**view)
    path = workdir / REPORT_FILE
    write_text(path, page)
    return path


def _view(sweep: Sweep, plan: Plan, workdir: Path) -> dict[str, Any]:
    measured = measured_of(plan, workdir, sweep.scores)
    variants = list(dict.fromkeys(run.variant for run in plan.runs))
    curves = _curves(rows_of(plan, workdir), variants)
    found = compare_sweep(sweep, plan, workdir)
    outcomes = read_outcomes(workdir, plan.jobs)
    return {
        "sweep": sweep,
        "variants": [(name, number % HUES) for number, name in enumerate(variants)],
        "changes": {run.variant: run.changes for run in plan.runs},
        "done": len(finished(plan, workdir)),
        "runs": len(plan.runs),
        "seconds": spent(outcomes),
        "stages": sum(not job.split and bool(job.label) for job in plan.jobs.values()),
        "stages_alone": sum(len(run.job.inputs) for run in plan.runs),
        "commits": sorted({one["commit"] for one in outcomes.values() if one.get("commit")}),
        "lines": _lines(found, measured),
        "tested": sum(not math.isnan(one.p) for one in found),
        "papers": any(contrast.paper for contrast in sweep.contrasts),
        "table": [
            [_cell(score, measured[score].get(variant, {})) for score in sweep.scores]
            for variant in variants
        ],
        "curves": [one for one in curves if _is_asked(one[0], sweep)],
        "others": [one for one in curves if not _is_asked(one[0], sweep)],
        "failures": reasons(plan, workdir),
    }


def _cell(score: str, found: Mapping[int, Any]) -> tuple[str, str]:
    """The mean over seeds, and what each seed gave; a line breaks between seeds alone."""
    seeds = (show(score, found[seed].value).replace(" ", "\u00a0") for seed in sorted(found))
    return show(score, mean_of(found)), " / ".join(seeds)


def _lines(found: Sequence[Comparison], measured: Mapping[str, Measured]) -> list[Line]:
    widest: dict[str, float] = {}
    for one in found:
        for end in one.effect.interval if one.effect else ():
            if math.isfinite(end):
                score = one.contrast.score
                widest[score] = max(widest.get(score, 0.0), abs(end))
    return [
        Line(
            row_of(one, measured[one.contrast.score]),
            STANDINGS[one.verdict],
            one.contrast.paper,
            _marks(one, widest.get(one.contrast.score, 0.0)),
        )
        for one in found
    ]


def _marks(one: Comparison, widest: float) -> dict[str, float]:
    """Places on an axis that has 0 in its middle and the widest interval of the score on it."""
    if one.effect is None or widest == 0:
        return {}
    places = one.effect.interval._asdict()
    return {name: 50 + 48 * min(max(value / widest, -1.0), 1.0) for name, value in places.items()}


def _curves(rows: Rows, variants: Sequence[str]) -> list[tuple[str, list[tuple[str, Markup]]]]:
    """Each held-out metric of each stage over steps, operations and time: (title, charts). Time is
    that of devices where there is any."""
    titles = dict.fromkeys((row["stage"], row["metric"]) for row in rows if row["stage"])
    on_devices = any(row["device_seconds"] is not None for row in rows)
    left_out = "cpu_seconds" if on_devices else "device_seconds"
    axes = {axis: words for axis, words in AXES.items() if axis != left_out}
    found = []
    for stage, metric in titles:
        own = [row for row in rows if (row["stage"], row["metric"]) == (stage, metric)]
        charts = [
            (
                f"over {words}",
                Markup(line_chart(_series(own, variants, axis), f"{metric}, {words}")),
            )
            for axis, words in axes.items()
        ]
        if any(svg for _, svg in charts):
            found.append((f"{stage}:{metric}", [(title, svg) for title, svg in charts if svg]))
    return found


def _is_asked(metric: str, sweep: Sweep) -> bool:
    """Whether a curve is of a score of the sweep, of a whole loss, or of judged drawings."""
    return metric in sweep.scores or metric.endswith(":eval/loss") or ":generation/" in metric


def _series(rows: Rows, variants: Sequence[str], axis: str) -> list[Series]:
    """A curve a variant: the mean over its seeds at each step, where all of them have got to."""
    series = []
    for number, variant in enumerate(variants):
        by_step: dict[int, list[tuple[float, float]]] = {}
        for row in rows:
            if row["variant"] == variant and row[axis] is not None:
                by_step.setdefault(row["step"], []).append((row[axis], row["value"]))
        most = max(map(len, by_step.values()), default=0)
        points = [np.mean(by_step[s], 0) for s in sorted(by_step) if len(by_step[s]) == most]
        xs, ys = ([float(point[i]) for point in points] for i in (0, 1))
        series.append(Series(xs, ys, f"v{number % HUES}"))
    return series
