"""The size of a gate by flow time (Cheers), from the metrics of a stage."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from unicom_jax.evaluation.charts import Series, line_chart
from unicom_jax.evaluation.report_inputs import Stage

BY_TIME = re.compile(r"(?:loss|eval)/gate/t(\d\.\d+)")  # keys of metrics.jsonl
LAST = 0.1  # share of the logged steps over which the training curve is averaged


def is_of_gate(key: str) -> bool:
    return BY_TIME.fullmatch(key) is not None


def gate_chart(stage: Stage) -> Markup | None:
    """A chart of the mean gate over flow time at the end of a stage: in training, averaged over the
    last steps, and on held-out data. None: the stage logged none."""
    last = stage.train[-max(1, math.ceil(LAST * len(stage.train))) :]
    curves = [
        Series(*_by_time(rows), role)
        for rows, role in ((last, "train"), (stage.evals[-1:], "eval"))
    ]
    if not any(curve.xs for curve in curves):
        return None
    return Markup(line_chart(curves, f"{stage.name}: mean size of the gate over flow time"))


def _by_time(rows: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Centres of the flow time intervals, and the mean of each over the rows that have it."""
    found: dict[float, list[float]] = {}
    for key, value in (item for row in rows for item in row.items()):
        if (name := BY_TIME.fullmatch(key)) and math.isfinite(value):
            found.setdefault(float(name[1]), []).append(value)
    starts = sorted(found)
    widths = [after - before for before, after in zip(starts, starts[1:], strict=False)]
    half = min(widths, default=1.0) / 2
    return [start + half for start in starts], [sum(found[s]) / len(found[s]) for s in starts]
