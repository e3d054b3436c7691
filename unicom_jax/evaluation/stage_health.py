"""Whether a stage of training ended well, from what it left on disk."""

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
    """What went wrong in a stage, in one sentence; "" where nothing did.

    Args:
      train, evals: rows of metrics.jsonl, in order.
      facts: stage.json, which a stage writes when it ends; {} without one.
      planned: number of steps in the configuration.
    """
    rows = sorted([*train, *evals], key=lambda row: row["step"])
    first = _first_of_the_last_bad(rows)
    last = max([0, *(row["step"] for row in rows)])
    if first is not None:
        step, key = first
        return f"diverged: {key} is not a finite number from step {step} to its last, {last}"
    ended = int(facts.get("steps") or 0)
    if rows and rows[-1].get("skipped_in_a_row") and last > ended:
        count = int(rows[-1]["skipped_in_a_row"])
        return (
            f"diverged: its last {count} steps up to {last} were skipped, as gradients had spikes"
        )
    if rows and not ended:
        of = f" of {planned}" if planned else ""
        return f"has not ended: its last logged step is {last}{of}"
    return ""


def _first_of_the_last_bad(rows: Sequence[Mapping[str, Any]]) -> tuple[int, str] | None:
    """(step, key) from which on a watched number is not finite in any row that has it."""
    starts = {}
    for row in rows:
        for key in WATCHED:
            if key in row and _finite(row[key]):
                starts.pop(key, None)
            elif key in row:
                starts.setdefault(key, row["step"])
    return min(((step, key) for key, step in starts.items()), default=None)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
