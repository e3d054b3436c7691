"""The flags of the commands that fit laws to a sweep, and how they read its table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyarrow
import pyarrow.parquet
from absl import app, flags

from unicom_jax.core.paths import Path, as_path, open_binary

WORKDIR = flags.DEFINE_string("workdir", "runs/isoflop", "Folder of the sweep.")
FIGURE = flags.DEFINE_string("figure", "", "Also draw the laws into this file, such as laws.png.")


def read_table(argv: Sequence[str], folder: str, sweep: str) -> tuple[Path, list[dict]]:
    """The table of a sweep of `experiments/sweeps`, on a disk or in a store, and its rows.

    Args:
      argv: what is left of the command line.
      folder: the sweep's workdir.

    Raises:
      UsageError: there are arguments that no flag takes.
      SystemExit: there is no table, or it cannot be read.
    """
    if argv[1:]:
        raise app.UsageError(f"unknown: {argv[1]}; did you mean --workdir={argv[1]}?")
    workdir = as_path(folder).expanduser()
    table = workdir / "results.parquet"
    if not table.is_file():
        raise SystemExit(
            f"{table} does not exist; run: unicom sweep run experiments/sweeps/{sweep}.py "
            f"--workdir={workdir}"
        )
    try:
        with open_binary(table) as file:
            found = pyarrow.parquet.read_table(file)
    except (OSError, pyarrow.ArrowException) as error:
        reason = " ".join(str(error).split())
        raise SystemExit(f"{table}: {reason}; write it again with unicom sweep table") from error
    if not {"stage", "metric"} <= set(found.column_names):
        raise SystemExit(f"{table} is not the table of a sweep; give its --workdir")
    return table, found.to_pylist()


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
