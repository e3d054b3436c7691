"""The flags of the commands that fit laws to a sweep, and how they read its table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet
from absl import flags

WORKDIR = flags.DEFINE_string("workdir", "runs/isoflop", "Folder of the sweep.")
FIGURE = flags.DEFINE_string("figure", "", "Also draw the laws into this file, such as laws.png.")


def read_table(workdir: Path, sweep: str) -> tuple[Path, list[dict]]:
    """The table of a sweep of `experiments/sweeps`, and its rows.

    Raises:
      SystemExit: there is none, or it cannot be read.
    """
    table = workdir / "results.parquet"
    if not table.is_file():
        raise SystemExit(
            f"{table} does not exist; run: unicom sweep run experiments/sweeps/{sweep}.py "
            f"--workdir={workdir}"
        )
    try:
        return table, pyarrow.parquet.read_table(table).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise SystemExit(f"{table}: {error}; write it again with unicom sweep table") from error


def ending(rows: Sequence[dict], score: str) -> dict[tuple[str, int], dict]:
    """The row of a score's last evaluation, by variant and seed.

    Raises:
      ValueError: a run without a finite loss.
    """
    stage, metric = score.split(":")
    last: dict[tuple[str, int], dict] = {}
    for row in rows:
        if (row["stage"], row["metric"]) == (stage, metric):
            key = (row["variant"], row["seed"])
            if not 0 < (row["value"] or 0) < math.inf or not row["tokens"]:
                raise ValueError(
                    f"{row['variant']}, seed {row['seed']}, has {score}={row['value']} after "
                    f"{row['tokens']} tokens at step {row['step']}: train it again, or leave it "
                    "out of the sweep"
                )
            last[key] = max(last.get(key, row), row, key=lambda one: one["step"])
    return last
