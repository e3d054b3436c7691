"""`unicom sweep` and `unicom compare` on the command line."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.sweeps.fake import FILE, train_anew, write_fake_sweep, write_hand_made
from unicom_jax.cli import main
from unicom_jax.parallel.plan.topology import parse_topology
from unicom_jax.sweeps import command, measure
from unicom_jax.sweeps import predict as prediction
from unicom_jax.sweeps.measure import Measured
from unicom_jax.sweeps.outcomes import path_of, write_outcome
from unicom_jax.sweeps.plan import write_jobs
from unicom_jax.sweeps.sweep import load_sweep
from unicom_jax.sweeps.sweep_flags import add_run_flags


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """FILE and the workdir of a sweep that is done but for one variant."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "fake.py").write_text(FILE)
    _, plan = write_fake_sweep(folder / "run")
    write_jobs(plan, folder / "run")
    return str(folder / "fake.py"), f"--workdir={folder / 'run'}"


def printed(capsys, *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def test_a_dry_run_shows_what_is_shared_what_is_left_and_the_disk(made, capsys):
    text = printed(capsys, "sweep", "run", *made, "--dry-run")
    assert "Wide answers more questions." in text
    line = next(line for line in text.splitlines() if line.strip().startswith("wide"))
    assert line.split()[1:5] == ["3", "pretrain", "encoder,", "codec"]
    assert "24 jobs, 18 done; a stage is shared by up to 3 runs" in text
    assert "MiB of checkpoints" in text and "of 10 min of CPU time" in text
    assert "+ 3 unknown of CPU time (jobs: 3 by their operations, 3 unknown)" in text


def test_measured_steps_and_what_they_give_are_shown(tmp_path, capsys, monkeypatch):
    (tmp_path / "fake.py").write_text(FILE)
    _, plan = write_fake_sweep(tmp_path / "run")
    write_jobs(plan, tmp_path / "run")
    stage = next(job for job in plan.jobs.values() if job.label == "pretrain")
    for job in plan.jobs.values():
        if job.alike == stage.alike:
            path_of(tmp_path / "run", job.id).unlink()
    found, asked = Measured(100.0, 0.5, 5, "cpu_seconds", 0), []
    monkeypatch.setattr(measure, "_in_process", lambda job, *_: asked.append(job.alike) or found)
    text = printed(
        capsys,
        *("sweep", "run", str(tmp_path / "fake.py"), f"--workdir={tmp_path / 'run'}"),
        *("--measure", "--dry-run"),
    )
    assert len(asked) == 2 and stage.alike in asked  # the other one failed
    assert f"{stage.alike}: 0.5 s a step by 5 steps" in text
    assert "+ 3 unknown of CPU time (jobs: 6 from measured steps, 3 unknown)" in text


def test_a_plan_for_accelerators_says_that_it_is_the_least_time(made, capsys, monkeypatch):
    monkeypatch.setattr(prediction, "computes_on_cpu", lambda: False)
    monkeypatch.setattr(prediction, "seen_topology", lambda: parse_topology("h200:2"))
    step = SimpleNamespace(step_seconds=60.0)
    monkeypatch.setattr(prediction, "estimate_stage", lambda *_: step)
    text = printed(capsys, "sweep", "run", *made, "--dry-run")
    assert "own device time" in text
    assert "left: 24 min 00 s + 3 unknown of device time (jobs: 3 from the plan of th" in text
    assert "the least that the steps can take" in text


def test_a_run_of_an_earlier_training_is_left_to_do_in_a_dry_run(tmp_path, capsys):
    (tmp_path / "fake.py").write_text(FILE)
    workdir = tmp_path / "run"
    _, plan = write_fake_sweep(workdir)
    write_jobs(plan, workdir)
    run = plan.runs[0].job
    stage = train_anew(workdir, plan, run)
    text = printed(
        capsys, "sweep", "run", str(tmp_path / "fake.py"), f"--workdir={workdir}", "--dry-run"
    )
    assert "24 jobs, 17 done" in text
    assert f"! {run.id}: runs/{run.id} holds an earlier training of {stage}" in text


def test_a_dry_run_does_without_the_descriptions_of_jobs(tmp_path, capsys):
    """Those of its own plan are known, and another sweep's job is only of use with its own."""
    (tmp_path / "fake.py").write_text(FILE)
    workdir = tmp_path / "run"
    write_fake_sweep(workdir)
    write_outcome(workdir, "pretrain-of-another", status="done", cpu_seconds=1.0)
    text = printed(
        capsys, "sweep", "run", str(tmp_path / "fake.py"), f"--workdir={workdir}", "--dry-run"
    )
    assert "24 jobs, 18 done" in text


def test_status_names_each_job_with_its_state_and_reason(made, capsys):
    text = printed(capsys, "sweep", "status", *made)
    assert text.count(" failed  ") == 2 and text.count(" done  ") == 18
    assert "18 done, 2 failed, 4 waiting; 3 min 20 s of CPU time used" in text


def test_status_says_which_variants_and_seed_need_a_job(made, capsys):
    text = printed(capsys, "sweep", "status", *made)
    jobs = [line.split()[:4] for line in text.splitlines() if "-" in line]
    told = {(name.partition("-")[0], *whose) for name, _, *whose in jobs}
    assert {("encoder", "all", "0"), ("pretrain", "wide", "2"), ("wide", "wide", "1")} <= told


def test_the_table_is_written_and_printed_in_three_forms(made, capsys, tmp_path):
    text = printed(capsys, "sweep", "table", *made)
    assert "same sign as the claim" in text and "results.parquet" in text
    assert "6 of 9 runs have a result" in text
    assert printed(capsys, "sweep", "table", *made, "--markdown").startswith("| score | first |")
    assert printed(capsys, "sweep", "table", *made, "--latex").startswith("\\begin{tabular}")


def test_the_report_is_written(made, capsys):
    assert printed(capsys, "sweep", "report", *made).endswith("report.html\n")


def test_runs_are_compared_with_the_keys_in_which_they_differ(capsys, tmp_path):
    first = write_hand_made(tmp_path / "a", seed=0, rate=0.4)
    second = write_hand_made(tmp_path / "b", seed=0, rate=0.8, codec__steps=9)
    text = printed(capsys, "compare", str(first), str(second))
    assert "codec.steps: 4 | 9" in text and "better" in text and "1 seed × 120" in text


def test_seeds_of_one_configuration_are_shown_with_their_range(capsys, tmp_path):
    runs = [str(write_hand_made(tmp_path / f"{i}", seed=i, rate=0.4)) for i in range(2)]
    assert "range over seeds" in printed(capsys, "compare", *runs)
    text = printed(capsys, "compare", *runs, "--markdown")
    (line,) = (line for line in text.splitlines() if line.startswith("| understanding/qa |"))
    assert line.count("|") == 8 and line.endswith("| – | 40.0% | 120 |")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--jobs=0"], "at least 1"),
        (["--shard=4/4"], "I from 0 to N-1"),
        (["--shard=1"], "I from 0 to N-1"),
        (["--engine=dask"], "choose from"),
        (["--config.seed=1"], "the configuration of a sweep, which FILE has; set it there"),
    ],
)
def test_a_wrong_flag_ends_with_status_2(capsys, flags, words):
    with pytest.raises(SystemExit) as end:
        main(["sweep", "run", "x.py", *flags])
    assert end.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sweep", "run", "missing.py"], "missing.py: no such file"),
        (["sweep", "table", "FILE", "--workdir=nowhere"], "nowhere holds no sweep"),
        (["sweep", "run", "FILE", "--workdir=hf://datasets/a/b"], "--workdir=hf://datasets/a/b"),
        (["compare", "nowhere"], "nowhere holds no run"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(made, capsys, arguments, words):
    assert main([made[0] if one == "FILE" else one for one in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize("engine", ["ray", "slurm"])
def test_an_engine_whose_package_is_missing_names_the_extra(made, capsys, monkeypatch, engine):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert main(["sweep", "run", *made, f"--engine={engine}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--engine={engine} needs a package that is missing" in line
    assert f"pip install 'unicom_jax[{engine}]'" in line


def test_the_launch_file_for_kubernetes_gives_each_pod_a_shard():
    yaml = pytest.importorskip("yaml")
    text = Path("experiments/launch/sweep_jobset.yaml").read_text(encoding="utf-8")
    (shards,) = yaml.safe_load(text)["spec"]["replicatedJobs"]
    job = shards["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    asked = container["command"][-1].replace("$JOB_COMPLETION_INDEX", "0").replace('"', "")
    parser = argparse.ArgumentParser()
    add_run_flags(parser)
    given = parser.parse_args(asked.split()[4:])
    assert load_sweep(given.file) and given.shard == (0, job["completions"])
    assert job["completionMode"] == "Indexed" and job["parallelism"] == job["completions"]
