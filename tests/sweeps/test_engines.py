"""Engines: a job is done somewhere else, and its status comes back. submitit is an extra."""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path

import pytest

from unicom_jax.sweeps import engines
from unicom_jax.sweeps.sweep_flags import ENGINES
from unicom_jax.sweeps.work import FAILED, read_outcome

NEEDS = {"local": "sys", "slurm": "submitit"}
STARTS = {**engines.ENGINES, "slurm": partial(engines.slurm, cluster="local")}


def wait(handle) -> str:
    while (status := handle.poll()) is None:
        time.sleep(0.1)
    return status


@pytest.fixture(scope="module", params=NEEDS)
def submit(request):
    """An engine; submitit starts its jobs as processes of this machine."""
    pytest.importorskip(NEEDS[request.param])
    with STARTS[request.param]() as engine:
        yield engine


def test_every_engine_has_a_flag():
    assert tuple(engines.ENGINES) == ENGINES


def test_an_engine_brings_back_how_a_job_ends(submit, tmp_path):
    """That of one whose description is damaged."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "damaged.json").write_text("{")
    assert wait(submit(tmp_path, "damaged")) == FAILED
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
