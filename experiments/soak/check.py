"""What a run has on disk, what it must resume from, and how it differs from an undisturbed one."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np

from experiments.soak.data import LOG_EVERY, STAGE
from unicom_jax.runs import checkpoint as files
from unicom_jax.training.clock import CLOCK

ITEMS = (files.PARAMS, files.TRAIN, files.POSITION)
# The clock's, this process's own, and shares since the last report, which a restart cuts short.
UNEQUAL = (*CLOCK, "failed_saves")


def checkpoints(workdir: Path) -> dict[int, int]:
    """Step -> inode of its folder, by which one that was written again is known."""
    folder = workdir / STAGE / "checkpoints"
    return {step: (folder / str(step)).stat().st_ino for step in files.stage_steps(workdir, STAGE)}


def truncate(workdir: Path, step: int, item: str) -> None:
    """Cuts all files of an item in half."""
    for path in (workdir / STAGE / "checkpoints" / str(step) / item).rglob("*"):
        if path.is_file():
            with path.open("r+b") as file:
                file.truncate(path.stat().st_size // 2)


def differences(calm: Path, soaked: Path, label: str = STAGE) -> list[str]:
    """In what the last checkpoint of a stage of the two runs, and its metrics, are not the same."""
    found = []
    for item in ITEMS:
        left, right = (_read(workdir / label, item) for workdir in (calm, soaked))
        if left.keys() != right.keys():
            found.append(f"{item}: other names")
        found += [
            f"{item}: {name}"
            for name in left.keys() & right.keys()
            if left[name].tobytes() != right[name].tobytes()
        ]
    left, right = (_curve(workdir / label) for workdir in (calm, soaked))
    found += [f"metrics of step {step}" for step in left if left[step] != right.get(step)]
    return found


def _read(stage: Path, item: str) -> dict[str, np.ndarray]:
    """All leaves of an item, in the folder of a stage, by their path."""
    step = files.stage_steps(stage.parent, stage.name)[-1]
    path = (stage / "checkpoints" / str(step) / item).absolute()
    if item == files.POSITION:
        tree = json.loads((path / "metadata").read_text(encoding="utf-8"))
    else:
        with files.ocp.StandardCheckpointer() as reader:
            tree = reader.restore(path)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(name): np.asarray(leaf) for name, leaf in leaves}


def _curve(stage: Path) -> dict[int, dict]:
    lines = map(json.loads, (stage / "metrics.jsonl").open(encoding="utf-8"))
    return {
        line["step"]: {
            key: value
            for key, value in line.items()
            if key not in UNEQUAL and not key.startswith("data/")
        }
        for line in lines
        if "loss" in line and line["step"] % LOG_EVERY == 0
    }
