"""Engines: a job is done somewhere else, and its status comes back. Ray and submitit are extras."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from experiments.sweeps import smoke
from unicom_jax.config import ConfigError
from unicom_jax.runs.workdir import stage_steps
from unicom_jax.sweeps import engines
from unicom_jax.sweeps.outcomes import DONE, FAILED, STOPPED, read_outcome, write_outcome
from unicom_jax.sweeps.plan import Plan, stage_jobs, write_jobs
from unicom_jax.sweeps.sweep_flags import ENGINES

NEEDS = {"local": "sys", "ray": "ray", "slurm": "submitit"}
RAY = pytest.param("ray", marks=pytest.mark.slow)


def wait(handle) -> str:
    while (status := handle.poll()) is None:
        time.sleep(0.1)
    return status


@pytest.fixture(scope="module", params=["local", RAY, "slurm"])
def submit(request):
    """An engine; submitit starts its jobs as processes of this machine."""
    pytest.importorskip(NEEDS[request.param])
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UNICOM_SLURM", "cluster=local")
        with engines.ENGINES[request.param]() as engine:
            yield engine


def test_without_slurm_its_engine_does_no_job_on_this_machine(monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match="srun is not on this"), engines.slurm():
        pass


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


@pytest.mark.slow
@pytest.mark.parametrize("submit", ["local", RAY], indirect=True)
def test_a_stage_that_is_stopped_saves_first(submit, tmp_path):
    config = smoke.get_config()
    config.encoder.steps = 100_000
    (job,) = (job for stage, job in stage_jobs(config).items() if stage.label == "encoder")
    write_jobs(Plan({job.id: job}, ()), tmp_path)
    handle = submit(tmp_path, job.id)
    metrics = job.folder(tmp_path) / "encoder" / "metrics.jsonl"
    while not (metrics.is_file() and metrics.read_text().count("\n") > 1):
        assert handle.poll() is None
        time.sleep(0.1)
    handle.stop()
    assert wait(handle) == STOPPED
    outcome = read_outcome(tmp_path, job.id)
    assert outcome["status"] == STOPPED and "resume" in outcome["reason"]
    assert stage_steps(job.folder(tmp_path), "encoder")


@pytest.mark.slow
def test_a_process_that_crashes_when_its_job_is_done_loses_nothing(tmp_path):
    write_outcome(tmp_path, "a", status=DONE, steps=3)
    assert engines.lost(tmp_path, "a", "signal SIGSEGV") == DONE
    assert read_outcome(tmp_path, "a")["steps"] == 3


def test_a_ray_cluster_that_does_not_answer_is_said_in_one_line(monkeypatch):
    ray = pytest.importorskip("ray")

    def nobody(*_, **__):
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "init", nobody)
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    with pytest.raises(ConfigError, match="RAY_ADDRESS=auto: no Ray cluster answers"):
        engines.ray_tasks().__enter__()


@pytest.mark.slow
def test_options_that_ray_does_not_know_are_said_in_one_line(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("UNICOM_RAY", "num_gppus=1")
    with pytest.raises(ConfigError, match="UNICOM_RAY: .*num_gppus"):
        engines.ray_tasks().__enter__()


def test_settings_of_an_engine_are_numbers_or_words(monkeypatch):
    monkeypatch.setenv("UNICOM_RAY", "num_cpus=8 num_gpus=0.5 scheduling_strategy=SPREAD")
    found = {"num_cpus": 8, "num_gpus": 0.5, "scheduling_strategy": "SPREAD"}
    assert engines._settings("UNICOM_RAY") == found
    monkeypatch.setenv("UNICOM_RAY", "num_cpus 8")
    with pytest.raises(ConfigError, match="UNICOM_RAY: 'num_cpus' is not of the form name=value"):
        engines._settings("UNICOM_RAY")
