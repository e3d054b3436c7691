"""Whether a stage of training ended well, judged by its files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

WATCHED = ("loss", "gradient_norm", "eval/loss")


def trouble(
    train: Sequence[Mapping[str, Any]],
    evals: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Any],
    planned: int | None = None,
) -> str:
    """What went wrong in a stage, in one sentence; "" if nothing did.

    Args:
      train, evals: rows of metrics.jsonl, in order.
      facts: stage.json, which a stage writes when it ends; {} without one.
      planned: number of steps in the configuration.
    """
    rows = sorted([*train, *evals], key=lambda row: row["step"])
    last = max([0, *(row["step"] for row in rows)])
    ended = 0 < last <= int(facts.get("steps") or 0)
    first, key = min(
        ((bad[0], key) for key in WATCHED if len(bad := _bad_end(rows, key)) > ended),
        default=(None, ""),
    )
    if first is not None:
        return f"diverged: {key} is not a finite number from step {first} to its last, {last}"
    if ended or not rows:
        return ""
    if skipped := int(rows[-1].get("skipped_in_a_row") or 0):
        return f"diverged: its last {skipped} steps up to {last} were skipped, for their gradients"
    return f"has not ended: its last logged step is {last}" + (f" of {planned}" if planned else "")


def _bad_end(rows: Sequence[Mapping[str, Any]], key: str) -> list[int]:
    """The trailing steps at which `key` was logged but was not finite.

    A single such step in a stage that ended is not a divergence: it was skipped.
    """
    steps: list[int] = []
    for row in rows:
        if key in row:
            steps = [] if _finite(row[key]) else [*steps, row["step"]]
    return steps


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
