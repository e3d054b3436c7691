"""How jobs ended, as files.

Imports neither JAX nor training code, so that a process which only starts a job, such as a Ray
task, needs little memory.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from unicom_jax.interop.atomic import write_text
from unicom_jax.runs.workdir import read_json

DONE, FAILED, STOPPED, BUSY = "done", "failed", "stopped", "busy"
STATUSES = {0: DONE, 1: FAILED, 75: STOPPED, 77: BUSY}  # by the exit status of a job's process


def read_outcome(workdir: Path, id: str) -> dict[str, Any]:
    """How a job ended, by its file; {} where it has not.

    Keys: "status" (DONE, FAILED, STOPPED), "reason", "at" (time of its end), "attempts" that ended,
    "cpu_seconds" and "seconds" of all of them, "commit" of the code, and of a stage that is done
    "steps", "flops_per_step" (None where they cannot be counted), "tokens_per_step", "bytes".
    """
    path = workdir / "outcomes" / f"{id}.json"
    return read_json(path, ValueError, "remove it") if path.is_file() else {}


def write_outcome(workdir: Path, id: str, **outcome: Any) -> None:
    path = workdir / "outcomes" / f"{id}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"at": time.time(), **outcome}, indent=1))
