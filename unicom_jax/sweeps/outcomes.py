"""How jobs ended, as files.

Imports neither JAX nor training code, so that a process which only starts a job, such as a Ray
task, needs little memory.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from unicom_jax.core.paths import is_remote
from unicom_jax.interop.atomic import write_text
from unicom_jax.runs.workdir import read_json

FOLDER = "outcomes"  # in a sweep's workdir
DONE, FAILED, STOPPED, BUSY = "done", "failed", "stopped", "busy"
STATUSES = {0: DONE, 1: FAILED, 75: STOPPED, 77: BUSY}  # by the exit status of a job's process


def claim_of(workdir: Path, id: str) -> Path:
    """The folder that the process which does a job locks."""
    return workdir / "claims" / id


def read_outcome(workdir: Path, id: str) -> dict[str, Any]:
    """How a job ended, by its file; {} where it has not.

    Keys: "status" (DONE, FAILED, STOPPED), "reason", "at" (time of its end), "attempts" that ended,
    "cpu_seconds" and "seconds" of all of them, "device_seconds" (seconds times devices) where JAX
    does not compute on a CPU, "commit" of the code, and of a stage that is done "steps",
    "flops_per_step" (None where they cannot be counted), "tokens_per_step", "bytes".
    """
    path = path_of(workdir, id)
    return _read(path) if path.is_file() else {}


def read_outcomes(workdir: Path, ids: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """How several jobs ended, by id; None: all that ended. In a store this takes one listing, and
    files that did not change since the last time are not read again."""
    folder = workdir / FOLDER
    if is_remote(workdir):
        stamps = {name: str(about) for name, about in folder.details().items()}
        ids = [name.removesuffix(".json") for name in stamps] if ids is None else ids
        names = {id: f"{id}.json" for id in ids}
        return {
            id: _as_of(folder / name, stamps[name]) if name in stamps else {}
            for id, name in names.items()
        }
    ids = [path.stem for path in folder.glob("*.json")] if ids is None else ids
    return {id: read_outcome(workdir, id) for id in ids}


def path_of(workdir: Path, id: str) -> Path:
    """The file that says how a job ended."""
    return workdir / FOLDER / f"{id}.json"


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, ValueError, "remove it")


@functools.lru_cache(maxsize=2**16)
def _as_of(path: Path, stamp: str) -> dict[str, Any]:
    del stamp
    return _read(path)


def write_outcome(workdir: Path, id: str, **outcome: Any) -> None:
    path = path_of(workdir, id)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"at": time.time(), **outcome}, indent=1))
