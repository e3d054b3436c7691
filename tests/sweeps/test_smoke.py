"""A small sweep from end to end: shared stages, a kill, two runners that resume, a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from unicom_jax.sweeps.results import SPENT
from unicom_jax.sweeps.work import DONE, read_outcome

ROOT = Path(__file__).resolve().parents[2]
FILE = """\
import dataclasses

from experiments.sweeps import smoke


def get_sweep():
    whole = smoke.get_sweep()
    variants = {"narrow": {}, "wide": whole.variants["wide"]}
    variants["broken"] = {"pretrain.freeze": (".*",)}
    return dataclasses.replace(
        whole, variants=variants, seeds=(0,), contrasts=whole.contrasts[:1], minutes=30
    )
"""
pytestmark = pytest.mark.slow


def start(file: Path, workdir: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "unicom_jax.cli", "sweep", "run", str(file)]
    given = {"PYTHONPATH": str(ROOT), "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *flags],
        env=os.environ | given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that all of its processes can be killed at once
    )


def table(workdir: Path) -> list[dict]:
    """The results, but for what differs between two equal sweeps."""
    rows = pyarrow.parquet.read_table(workdir / "results.parquet").to_pylist()
    return [{key: value for key, value in row.items() if key not in SPENT} for row in rows]


def test_a_killed_sweep_that_two_runners_resume_has_the_table_of_one_that_was_left_alone(tmp_path):
    file = tmp_path / "sweep.py"
    file.write_text(FILE)
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    killed = start(file, shared, "--jobs=2")
    while not list((shared / "logs").glob("codec-*.log")):
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    folder = shared / "outcomes"
    kept = {path.stem: read_outcome(shared, path.stem) for path in folder.glob("*.json")}
    both = [start(file, shared) for _ in range(2)]
    printed = [one.communicate()[0] for one in both]
    assert [one.returncode for one in both] == [1, 1], printed  # a variant has no result
    outcomes = {path.stem: read_outcome(shared, path.stem) for path in folder.glob("*.json")}
    done = [one for one in outcomes.values() if one["status"] == DONE]
    assert len(done) == 6 and {one["attempts"] for one in done} == {1}  # nothing is done twice
    assert all(outcomes[id] == one for id, one in kept.items())  # nor what was done before

    reference = start(file, alone, "--jobs=2")
    assert "1 of 3 runs have no result" in reference.communicate()[0]
    rows = table(alone)
    assert rows == table(shared)
    metrics = {row["metric"] for row in rows if row["variant"] == "narrow"}
    assert metrics >= {"eval/loss", "understanding/qa"}
    (broken,) = (row for row in rows if row["variant"] == "broken")
    assert broken["status"] == "failed" and "trains no weight" in broken["reason"]

    run = next(path for path in (shared / "runs").iterdir() if path.name.startswith("wide"))
    assert read_outcome(shared, run.name)["status"] == DONE
    giver = next((shared / "stages").glob("encoder-*"))
    weights = (one / "encoder/checkpoints/8/params" for one in (giver, run))
    files = ([path for path in one.rglob("*") if path.is_file()] for one in weights)
    first, second = (sorted(path.stat().st_ino for path in one) for one in files)
    assert first == second  # hard links: a run takes no space for what it shares
