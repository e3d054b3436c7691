"""The tidy table of a sweep: a row for each number that was measured.

    WORKDIR/results.parquet, results.csv

| column | |
|---|---|
| variant, seed, overrides | the run; overrides as JSON |
| status, reason | done, failed or unfinished; why it failed |
| stage, step, metric, value | held-out metrics of stages, and scores with an empty stage |
| low, high, n | 95% interval over test items and their number, of scores |
| flops, cpu_seconds, device_seconds | of the run up to there; stages that it shares count in full |
| tokens | that the stage, of a score the last one, has read up to there: slots, or patches |
| commit | of the code that trained the stage, or scored the run |

A run without any number, because it failed or has not ended, is one row.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from unicom_jax.config import ConfigError
from unicom_jax.evaluation.report_inputs import read_lines
from unicom_jax.evaluation.run import SCORES_FILE
from unicom_jax.evaluation.scores import read_scores, score_names
from unicom_jax.interop.atomic import write_bytes, write_text
from unicom_jax.sweeps.outcomes import DONE, FAILED, path_of, read_outcome
from unicom_jax.sweeps.plan import Plan, Run
from unicom_jax.sweeps.runner import finished, reasons

COLUMNS = {
    "variant": pa.string(),
    "seed": pa.int64(),
    "status": pa.string(),
    "reason": pa.string(),
    "stage": pa.string(),
    "step": pa.int64(),
    "metric": pa.string(),
    "value": pa.float64(),
    "low": pa.float64(),
    "high": pa.float64(),
    "n": pa.int64(),
    "flops": pa.float64(),
    "tokens": pa.float64(),
    "cpu_seconds": pa.float64(),
    "device_seconds": pa.float64(),
    "commit": pa.string(),
    "overrides": pa.string(),
}

USED = ("flops", "cpu_seconds", "device_seconds")
SPENT = (*USED[1:], "commit")  # columns in which two sweeps with equal results may differ
HELD_OUT = ("eval/", "generation/")  # metrics of stages that are of an evaluation
Rows = list[dict[str, Any]]


def rows_of(plan: Plan, workdir: Path) -> Rows:
    """The table, run after run."""
    failed, done = reasons(plan, workdir), finished(plan, workdir)
    return [
        row
        for run in plan.runs
        for row in _rows_of_run(plan, workdir, run, failed.get(run.job.id, ""), run.job.id in done)
    ]


def _rows_of_run(plan: Plan, workdir: Path, run: Run, reason: str, ended: bool) -> Rows:
    common = {
        "variant": run.variant,
        "seed": run.seed,
        "status": DONE if ended else FAILED if reason else "unfinished",
        "reason": "" if ended else reason,
        "overrides": json.dumps(run.changes),
    }
    found = [{**common, **row} for row in _measured(plan, workdir, run)] if ended else []
    return [{**dict.fromkeys(COLUMNS), **row} for row in found or [common]]


def _measured(plan: Plan, workdir: Path, run: Run) -> Iterator[dict[str, Any]]:
    folder, step, tokens = run.job.folder(workdir), 0, 0.0
    used: dict[str, float | None] = dict.fromkeys(USED, 0.0)  # by the stages before
    for job in plan.needed(run):
        outcome = read_outcome(workdir, job.id)
        steps, own = outcome["steps"], _used_by_stage(outcome)
        for row in read_lines(folder / job.label / "metrics.jsonl"):
            spent = {
                **_sum(used, own, row["step"] / steps),
                "stage": job.label,
                "step": row["step"],
                "tokens": float(outcome["tokens_per_step"] * row["step"]),
                "commit": outcome["commit"],
            }
            for metric, value in row.items():
                if metric.startswith(HELD_OUT) and isinstance(value, int | float):
                    yield {**spent, "metric": metric, "value": float(value)}
        used, step = _sum(used, own), steps
        tokens = float(outcome["tokens_per_step"] * steps)
    if run.job.split and not (folder / SCORES_FILE).is_file():
        raise ConfigError(
            f"{folder / SCORES_FILE} is missing, although the run is done; remove "
            f"{path_of(workdir, run.job.id)} and run the sweep again, which scores it anew"
        )
    scores = read_scores(folder / SCORES_FILE) if run.job.split else {}
    about = {
        "stage": "",
        "step": step,
        "tokens": tokens,
        **used,
        "commit": read_outcome(workdir, run.job.id)["commit"],
    }
    for name in score_names(scores):
        facets = {facet: scores[f"{name}.{facet}"] for facet in ("low", "high", "n")}
        yield {**about, "metric": name, "value": scores[name], **facets}


def _used_by_stage(outcome: Mapping[str, Any]) -> dict[str, float | None]:
    """What a stage took; None: unknown, or on a CPU no device."""
    each = outcome["flops_per_step"]
    return {
        "flops": None if each is None else each * outcome["steps"],
        "cpu_seconds": outcome["cpu_seconds"],
        "device_seconds": outcome.get("device_seconds"),
    }


def _sum(
    before: Mapping[str, float | None], own: Mapping[str, float | None], share: float = 1.0
) -> dict[str, float | None]:
    """What a run used up to a share of a stage; None where one of the two is unknown."""
    return {
        name: None if None in (before[name], own[name]) else before[name] + share * own[name]
        for name in USED
    }


def write_table(rows: Sequence[dict[str, Any]], workdir: Path) -> tuple[Path, Path]:
    """Writes the table in both forms; each is there whole or as it was."""
    schema = pa.schema(list(COLUMNS.items()))
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), buffer)
    parquet, text = workdir / "results.parquet", io.StringIO(newline="")
    write_bytes(parquet, buffer.getvalue())
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_text(workdir / "results.csv", text.getvalue())
    return parquet, workdir / "results.csv"
