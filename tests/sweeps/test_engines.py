"""Engines: a job is done somewhere else, and its status comes back. Ray and submitit are extras."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import pytest

from unicom_jax.sweeps import engines
from unicom_jax.sweeps.sweep_flags import ENGINES
from unicom_jax.sweeps.work import DONE, FAILED, read_outcome, write_outcome

NEEDS = {"local": "sys", "ray": "ray", "slurm": "submitit"}
STARTS = {**engines.ENGINES, "slurm": partial(engines.slurm, cluster="local")}


def wait(handle) -> str:
    while (status := handle.poll()) is None:
        time.sleep(0.1)
    return status


@pytest.fixture(scope="module", params=NEEDS)
def submit(request):
    """An engine, started once: Ray on a cluster of this machine, submitit with its local one."""
    pytest.importorskip(NEEDS[request.param])
    with STARTS[request.param](1) as engine:
        yield engine


def test_every_engine_has_a_flag():
    assert tuple(engines.ENGINES) == ENGINES


def test_an_engine_brings_back_how_jobs_end(submit, tmp_path):
    """One that is done already, and one whose description is damaged."""
    write_outcome(tmp_path, "done", status=DONE)
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "damaged.json").write_text("{")
    handles = [submit(tmp_path, id) for id in ("done", "damaged")]
    assert [wait(handle) for handle in handles] == [DONE, FAILED]
    assert "damaged.json is not JSON" in read_outcome(tmp_path, "damaged")["reason"]


@pytest.mark.parametrize(
    ("code", "reason"), [("raise SystemExit(3)", "exit status 3"), ("1 / 0", "exit status 1")]
)
def test_a_process_that_ends_without_an_outcome_is_a_failure_that_names_its_log(
    tmp_path, monkeypatch, code, reason
):
    broken = Path(tmp_path, "python")
    broken.write_text(f"#!{sys.executable}\n{code}\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    assert wait(engines._Process(tmp_path, "root")) == FAILED
    found = read_outcome(tmp_path, "root")["reason"]
    assert reason in found and "logs/root.log" in found
