"""The loop over a plan, with jobs that end at once: what is started when, and how it ends."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console

from experiments import base
from tests.sweeps.fake import fake_sweep
from unicom_jax.config import to_json
from unicom_jax.parallel.plan.topology import parse_topology
from unicom_jax.planning.estimate import estimate_stage
from unicom_jax.sweeps import devices, runner
from unicom_jax.sweeps import predict as prediction
from unicom_jax.sweeps import work as working
from unicom_jax.sweeps.devices import seen_topology
from unicom_jax.sweeps.outcomes import (
    BUSY,
    DONE,
    FAILED,
    STOPPED,
    path_of,
    read_outcome,
    read_outcomes,
    write_outcome,
)
from unicom_jax.sweeps.plan import Job, Plan, Run, make_plan
from unicom_jax.sweeps.predict import COUNTED, FINISHED, MEASURED, PLANNED, UNKNOWN, predict
from unicom_jax.sweeps.runner import Runner, finished, reasons, spent
from unicom_jax.sweeps.work import work
from unicom_jax.training.stopping import Stopped


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(runner, "LOOK", 0.0)
    monkeypatch.setattr(runner, "AGAIN", 0.0)


def plan_of(runs: dict[str, list[str]]) -> Plan:
    """Runs by name, with the stages of each in order: each stage needs those before it."""
    jobs: dict[str, Job] = {}
    for stages in runs.values():
        for place, name in enumerate(stages):
            inputs = {one: one for one in stages[:place]}
            jobs.setdefault(name, Job(name, "stage", name, inputs, {}, name))
    found = []
    for name, stages in runs.items():
        job = Job(name, "run", "", {one: one for one in stages}, {}, name)
        found.append(Run(name, 0, job, {}))
    return Plan({**jobs, **{run.job.id: run.job for run in found}}, tuple(found))


TWO = {"a": ["root", "left"], "b": ["root", "right"]}


class Jobs:
    """An engine: each job ends when it is polled, in the way that `ends` says, one after the
    other; after them, and otherwise, it is done."""

    def __init__(self, seconds: float = 1.0, **ends: list[str]) -> None:
        self.ends, self.seconds = {id: list(one) for id, one in ends.items()}, seconds
        self.started: list[str] = []
        self.stopped: list[str] = []

    def __call__(self, workdir: Path, id: str):
        self.started.append(id)
        engine = self

        class Handle:
            def poll(self):
                status = engine.ends[id].pop(0) if engine.ends.get(id) else DONE
                if status in (DONE, FAILED):
                    why = {"reason": f"{id} broke"} if status == FAILED else {}
                    write_outcome(
                        workdir, id, status=status, cpu_seconds=engine.seconds, seconds=1.0, **why
                    )
                return status

            def stop(self):
                engine.stopped.append(id)
                engine.ends[id] = [STOPPED]

        return Handle()


def run(plan, tmp_path, jobs, slots=1, minutes=10.0, **how):
    return Runner(
        plan, tmp_path, jobs, slots, Console(file=io.StringIO()), minutes=minutes, **how
    ).run()


def test_each_stage_runs_once_and_after_those_it_needs(tmp_path):
    jobs = Jobs()
    ended = run(plan_of(TWO), tmp_path, jobs)
    assert Counter(jobs.started) == Counter(["root", "left", "right", "a", "b"])
    assert jobs.started.index("root") < jobs.started.index("left") < jobs.started.index("a")
    assert not ended.failed and not ended.unstarted


def test_what_most_runs_need_is_started_first(tmp_path):
    jobs = Jobs()
    run(plan_of({"a": ["alone"], "b": ["shared"], "c": ["shared"]}), tmp_path, jobs)
    assert jobs.started[0] == "shared"


def test_a_run_is_scored_before_the_next_one_is_trained(tmp_path):
    jobs = Jobs()
    run(plan_of(TWO), tmp_path, jobs)
    assert jobs.started == ["root", "left", "a", "right", "b"]


def test_a_sweep_whose_cpu_time_does_not_suffice_has_whole_runs(tmp_path):
    jobs = Jobs(seconds=25.0)
    ended = run(plan_of(TWO), tmp_path, jobs, minutes=1.0)
    assert jobs.started == ["root", "left", "a"] and set(ended.unstarted) == {"right", "b"}


def test_what_is_done_is_not_done_again(tmp_path):
    plan = plan_of(TWO)
    run(plan, tmp_path, Jobs())
    again = Jobs()
    run(plan, tmp_path, again)
    assert again.started == []


def test_what_is_done_with_an_earlier_training_of_a_stage_is_named_and_not_counted(tmp_path):
    """The user removed a stage with its outcome, so it is trained again."""
    plan = plan_of({"a": ["root"]})
    run(plan, tmp_path, Jobs())
    given, own = tmp_path / "runs" / "a" / "root", tmp_path / "stages" / "root"
    given.mkdir(parents=True)
    (given / "stage.json").write_text("first")
    path_of(tmp_path, "root").unlink()

    class Trained(Jobs):
        def __call__(self, workdir, id):
            (own / "root").mkdir(parents=True)
            (own / "root" / "stage.json").write_text("second")
            return super().__call__(workdir, id)

    jobs = Trained()
    ended = run(plan, tmp_path, jobs)
    assert jobs.started == ["root"] and not finished(plan, tmp_path)
    assert "a holds an earlier training of root; remove it and" in ended.failed["a"]


def test_a_failed_stage_takes_the_runs_along_that_need_it_and_no_other(tmp_path):
    plan = plan_of(TWO)
    ended = run(plan, tmp_path, Jobs(left=[FAILED]))
    assert ended.failed == {"left": "left broke", "a": "stage left: left broke"}
    assert read_outcome(tmp_path, "b")["status"] == DONE
    assert reasons(plan, tmp_path) == {"a": "stage left: left broke"}


def test_what_failed_before_is_tried_again(tmp_path):
    plan, again = plan_of(TWO), Jobs()
    run(plan, tmp_path, Jobs(left=[FAILED]))
    ended = run(plan, tmp_path, again)
    assert again.started == ["left", "a"] and not ended.failed


def test_what_fails_in_another_runner_meanwhile_is_not_tried_again(tmp_path):
    plan = plan_of(TWO)

    class Elsewhere(Jobs):
        def __call__(self, workdir, id):
            if id == "root":
                write_outcome(workdir, "left", status=FAILED, reason="there", at=time.time() + 9)
            return super().__call__(workdir, id)

    jobs = Elsewhere()
    ended = run(plan, tmp_path, jobs)
    assert "left" not in jobs.started and ended.failed["a"] == "stage left: there"


def test_a_job_that_another_runner_is_at_waits_while_others_run(tmp_path):
    jobs, said = Jobs(left=[BUSY, BUSY]), io.StringIO()
    Runner(plan_of(TWO), tmp_path, jobs, 2, Console(file=said), minutes=10.0).run()
    assert said.getvalue().count("left: another process is at it; waiting for its end") == 1
    assert jobs.started.count("left") == 3
    assert jobs.started.count("right") == 1


def test_no_stage_is_started_after_the_cpu_time_is_used_up(tmp_path):
    plan, jobs = plan_of(TWO), Jobs(seconds=40.0)
    ended = run(plan, tmp_path, jobs, minutes=1.0)
    assert len(jobs.started) == 2 and spent(read_outcomes(tmp_path)) == 80.0
    assert set(ended.unstarted) == {"left", "right", "a", "b"} - set(jobs.started)


def test_the_cpu_time_of_the_other_tasks_of_an_array_counts(tmp_path):
    plan = plan_of(TWO)
    run(plan.only(plan.runs[:1]), tmp_path, Jobs(seconds=40.0))
    left = plan.only(plan.runs[1:])
    others = plan.jobs.keys() - left.jobs.keys()
    assert run(left, tmp_path, Jobs(), minutes=2.5).unstarted == ()
    for id in ("right", "b"):
        path_of(tmp_path, id).unlink()
    jobs = Jobs()
    ended = run(left, tmp_path, jobs, minutes=1.9, others=others)
    assert jobs.started == [] and set(ended.unstarted) == {"right", "b"}


def test_a_stop_asks_what_runs_to_save_and_starts_nothing_more(tmp_path):
    jobs, heard = Jobs(), []

    def asked() -> bool:
        heard.append(None)
        return len(jobs.started) == 1

    jobs.ends["root"] = [None, None, None, None]
    with pytest.raises(Stopped, match="run the same command"):
        run(plan_of(TWO), tmp_path, jobs, asked_to_stop=asked)
    assert jobs.stopped == ["root"] and jobs.started == ["root"]


def test_a_job_whose_lock_another_process_holds_is_busy(tmp_path):
    hold = (
        "import sys, pathlib; from unicom_jax.runs.lock import workdir_lock\n"
        "with workdir_lock(pathlib.Path(sys.argv[1])): print('held', flush=True); input()"
    )
    claim = tmp_path / "claims" / "root"
    command = [sys.executable, "-c", hold, str(claim)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "held\n"
        assert work(tmp_path, "root") == BUSY
        other.communicate("\n")
    write_outcome(tmp_path, "root", status=DONE)
    assert work(tmp_path, "root") == DONE


def test_a_job_that_cannot_be_read_is_an_outcome_with_its_reason(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "root.json").write_text("{")
    assert work(tmp_path, "root") == FAILED
    assert "root.json is not JSON" in read_outcome(tmp_path, "root")["reason"]


@pytest.mark.parametrize(("suites", "asked"), [("", None), ("all", "all")])
def test_a_run_is_scored_by_the_suites_that_its_job_names(tmp_path, monkeypatch, suites, asked):
    given = {}
    monkeypatch.setattr(working, "open_run", lambda *_: base.get_config())
    monkeypatch.setattr(working, "prepare_compiler", lambda *_: None)
    monkeypatch.setattr(working, "run_evaluate", lambda *_, **flags: given.update(flags))
    job = Job("a", "run", "", {}, json.loads(to_json(base.get_config())), "a", "development")
    working._join(tmp_path, dataclasses.replace(job, suites=suites))
    assert given == {"split": "development", "baseline": False, "suites": asked}


def test_a_prediction_is_what_a_job_of_another_seed_took():
    first, second = (Job(name, "stage", "x", {}, {}, "alike", "test") for name in "ab")
    runs = [Job(name, "run", "", {}, {}, "scored", "test") for name in "cd"]
    plan = Plan({"d": runs[1]}, ())
    outcomes = {"c": {"status": DONE, "cpu_seconds": 30.0}}
    cost = predict(plan, outcomes, {"c": runs[0]}, {})["d"]
    assert (cost.seconds, cost.source) == (30.0, FINISHED)
    assert predict(plan, {}, {}, {})["d"].seconds is None


@pytest.fixture
def encoder() -> Plan:
    """A plan of one stage."""
    plan = make_plan(fake_sweep(variants={"narrow": {}}, seeds=(0,)))
    return Plan({id: job for id, job in plan.jobs.items() if job.label == "encoder"}, ())


def test_a_stage_that_was_measured_takes_what_its_steps_say_until_one_is_done(encoder):
    (job,) = encoder.jobs.values()
    (cost,) = predict(encoder, {}, {}, {job.alike: 70.0}).values()
    assert (cost.seconds, cost.source) == (70.0, MEASURED)
    outcomes = {job.id: {"status": DONE, "cpu_seconds": 80.0, "flops_per_step": 1.0, "steps": 4}}
    (cost,) = predict(encoder, outcomes, encoder.jobs, {job.alike: 70.0}).values()
    assert (cost.seconds, cost.source) == (80.0, FINISHED)


def test_without_either_its_operations_say_what_it_takes(encoder):
    (cost,) = predict(encoder, {}, {}, {}).values()
    assert cost.seconds > prediction.START and cost.source == COUNTED


def on_accelerators(monkeypatch, name: str | None) -> None:
    monkeypatch.setattr(prediction, "computes_on_cpu", lambda: False)
    topology = parse_topology(name) if name else None
    monkeypatch.setattr(prediction, "seen_topology", lambda: topology)


def test_on_accelerators_the_plan_of_its_steps_does_for_all_devices(encoder, monkeypatch):
    on_accelerators(monkeypatch, "h200:4")
    (job,) = encoder.jobs.values()
    (cost,) = predict(encoder, {}, {}, {}).values()
    plan = estimate_stage(job.configuration(), "encoder", parse_topology("h200:4"))
    assert cost.source == PLANNED
    assert cost.seconds == pytest.approx(4 * plan.step_seconds * plan.steps) and plan.steps > 1


def test_on_accelerators_device_time_of_a_finished_stage_counts(encoder, monkeypatch):
    on_accelerators(monkeypatch, "h200:4")
    (job,) = encoder.jobs.values()
    outcomes = {job.id: {"status": DONE, "cpu_seconds": 80.0, "device_seconds": 9.0}}
    (cost,) = predict(encoder, outcomes, encoder.jobs, {}).values()
    assert (cost.seconds, cost.source) == (9.0, FINISHED)


def test_on_accelerators_of_unknown_speed_the_time_is_unknown(encoder, monkeypatch):
    on_accelerators(monkeypatch, None)
    (cost,) = predict(encoder, {}, {}, {}).values()
    assert (cost.seconds, cost.source) == (None, UNKNOWN)


def test_the_accelerators_of_this_machine_are_looked_at_by_another_process(monkeypatch):
    """One that has looked at them keeps their memory."""
    seen_topology.cache_clear()
    assert seen_topology() is None  # on a CPU
    monkeypatch.setattr(devices, "computes_on_cpu", lambda: False)
    told = subprocess.CompletedProcess((), 0, stdout="a warning\nv5e:2x4 2\n")
    monkeypatch.setattr(devices.subprocess, "run", lambda *_, **__: told)
    seen_topology.cache_clear()
    assert (str(seen_topology()), seen_topology().devices) == ("2 x v5e:2x4", 16)
    seen_topology.cache_clear()


def test_no_process_is_started_for_a_job_that_another_one_is_seen_at(tmp_path, monkeypatch):
    jobs, seen = Jobs(), []

    def claimed(claim):
        seen.append(claim.name)
        return claim.name == "left" and seen.count("left") < 3

    monkeypatch.setattr(runner, "is_locked", claimed)
    run(plan_of(TWO), tmp_path, jobs)
    assert seen.count("left") == 3 and jobs.started.count("left") == 1
