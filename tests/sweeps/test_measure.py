"""What a stage takes, from a few of its steps."""

from __future__ import annotations

import dataclasses
import io
import json

import jax
import numpy as np
import pytest
from rich.console import Console

from tests.sweeps.fake import fake_sweep
from tests.tiny import tiny_config
from unicom_jax.runs.checkpoint import restore_params
from unicom_jax.runs.imported import on_this_host
from unicom_jax.runs.initial import initial_params
from unicom_jax.runs.released import build_stage
from unicom_jax.sweeps import measure as measuring
from unicom_jax.sweeps.measure import (
    FOLDER,
    LEAST,
    MISSED,
    MOST,
    Measured,
    Meter,
    NotMeasured,
    extrapolate,
    measure,
    measure_stages,
    read_measured,
)
from unicom_jax.sweeps.plan import Job, Plan, make_plan, stage_jobs

# ---- from a few steps to all -------------------------------------------------------------------


def test_steps_that_are_left_take_what_those_after_the_first_one_took():
    seconds, step = extrapolate([10, 11, 12, 13], [], 14, steps=104, evaluations=0, drawings=0)
    assert (seconds, step) == (14 + 100, 1)


def test_evaluations_count_as_often_as_the_whole_stage_has_them_and_compile_once():
    """Steps take 1 s, the first evaluation 5 s, a later one 2 s."""
    marks = [10, 10 + 1 + 5, 17, 17 + 1 + 2, 21]
    seconds, step = extrapolate(marks, [], 22, steps=20, evaluations=4, drawings=0)
    begin_and_end = 22 - 5 - 5 - 2
    assert (seconds, step) == (begin_and_end + 20 + 5 + 3 * 2, 1)


def test_drawings_count_beside_evaluations():
    """As above, and the first drawing takes 7 s, a later one 3 s."""
    marks = [10, 10 + 1 + 5 + 7, 24, 24 + 1 + 2 + 3, 31]
    seconds, step = extrapolate(marks, [7, 3], 32, steps=20, evaluations=4, drawings=2)
    begin_and_end = 32 - 5 - (5 + 2) - (7 + 3)
    assert (seconds, step) == (begin_and_end + 20 + 5 + 3 * 2 + 7 + 3, 1)


def test_a_stage_of_two_steps_takes_what_it_took():
    seconds, _ = extrapolate([10, 16], [], 17, steps=2, evaluations=1, drawings=0)
    assert seconds == 17


# ---- how many steps are measured ---------------------------------------------------------------


def steps_of(meter: Meter) -> int:
    assert not meter.asked_to_stop()  # before the first step
    while not meter.asked_to_stop():
        pass
    return len(meter.marks)


@pytest.mark.parametrize(
    ("length", "each", "steps"),
    [
        (1000, 10.0, LEAST),
        (1000, 1.0, LEAST),
        (1000, 0.25, 13),
        (1000, 1e-3, MOST),
        (8, 1e-3, 7),  # not to its end, where it evaluates once more
        (2, 1e-3, 2),
    ],
)
def test_short_steps_are_measured_more_often(length, each, steps):
    clock = iter(range(10_000))
    assert steps_of(Meter(length, 2, lambda: each * next(clock))) == steps


def test_a_process_that_compiled_a_program_ends_early():
    meter = Meter(1000, 2, lambda: 0.0)
    jax.monitoring.record_event(MISSED)
    assert (steps_of(meter), meter.compiled) == (2, 1)


# ---- a real stage ------------------------------------------------------------------------------


def job_of(label: str, **changes) -> Job:
    (job,) = (one for one in stage_jobs(tiny_config(**changes)).values() if one.label == label)
    return job


def test_a_stage_is_measured_on_steps_that_train_it(tmp_path, monkeypatch):
    """From random weights of the stages before it, with its own data, evaluated as it asks to be.
    On made-up data the update would be skipped, and a step would take less."""
    monkeypatch.setattr(measuring, "MOST", 3)
    job = job_of("pretrain", pretrain__steps=40, pretrain__eval_every=10, pretrain__seed=3)
    found = measure(job, tmp_path, tmp_path, MOST)
    rows = [json.loads(line) for line in (tmp_path / "pretrain/metrics.jsonl").open()]
    trained = [row for row in rows if "gradient_norm" in row]
    assert [row["step"] for row in trained] == [1, 2, 3] and found.steps == 3
    assert all(row["gradient_norm"] > 0 and row["skipped_steps"] == 0 for row in trained)
    assert all(row["loss/text"] > 0 and row["loss/flow"] > 0 for row in trained)
    assert [row["step"] for row in rows if "eval/loss" in row] == [2]
    config = json.loads((tmp_path / "config.json").read_text())
    module = build_stage(config, "pretrain")
    ends = restore_params(tmp_path, "pretrain", module.abstract())
    starts = initial_params(module.specs(), [], 3, on_this_host)
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), starts, ends)
    assert np.mean(jax.tree.leaves(moved)) > 0.9
    assert found.unit == "cpu_seconds" and found.seconds > 0


def test_a_stage_whose_steps_are_skipped_is_not_measured(tmp_path, monkeypatch):
    def skips(config, folder, *_, **__):
        (folder / "encoder").mkdir()
        rows = [{"step": 1, "skipped_steps": 0.0}, {"step": 2, "skipped_steps": 1.0}]
        (folder / "encoder/metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))

    monkeypatch.setattr(measuring, "run_stages", skips)
    with pytest.raises(NotMeasured, match="1 of 0 steps were skipped"):
        measure(job_of("encoder"), tmp_path, tmp_path, MOST)


# ---- all stages of a sweep ---------------------------------------------------------------------


@dataclasses.dataclass
class Processes:
    """What the processes that measure give, one after the other; then nothing was compiled."""

    given: list = dataclasses.field(default_factory=list)
    asked: list[tuple[str, int]] = dataclasses.field(default_factory=list)

    def __call__(self, job, workdir, patience):
        self.asked.append((job.label, patience))
        compiled = self.given.pop(0) if self.given else 0
        if isinstance(compiled, str):
            raise NotMeasured(compiled)
        return Measured(10.0 + len(self.asked), 0.1, 5, "cpu_seconds", compiled)


@pytest.fixture
def processes(monkeypatch):
    found = Processes()
    monkeypatch.setattr(measuring, "_in_process", found)
    return found


@pytest.fixture
def plan() -> Plan:
    return make_plan(fake_sweep(variants={"narrow": {}}, seeds=(0, 1)))


def measured(plan, workdir, known=()) -> str:
    said = io.StringIO()
    measure_stages(plan, workdir, Console(file=said), known)
    return said.getvalue()


def alike(plan: Plan, label: str) -> str:
    return next(job.alike for job in plan.jobs.values() if job.label == label)


def test_a_stage_of_several_seeds_is_measured_once(plan, processes, tmp_path):
    assert f"{alike(plan, 'codec')}: 0.1 s a step by 5 steps" in measured(plan, tmp_path)
    assert [label for label, _ in processes.asked] == ["encoder", "codec", "pretrain"]
    assert read_measured(tmp_path, plan)[alike(plan, "codec")] == 12.0


def test_what_is_known_is_not_measured_again(plan, processes, tmp_path):
    measured(plan, tmp_path, known={alike(plan, "encoder")})
    assert [label for label, _ in processes.asked] == ["codec", "pretrain"]
    (tmp_path / FOLDER / f"{alike(plan, 'pretrain')}.json").unlink()
    processes.asked.clear()
    measured(plan, tmp_path, known={alike(plan, "encoder")})
    assert [label for label, _ in processes.asked] == ["pretrain"]


def test_a_process_that_compiled_is_followed_by_another_one(plan, processes, tmp_path):
    processes.given = [2, 0, 2, 1, 1]
    measured(plan, tmp_path)
    own = [("encoder", 2), ("encoder", 2), ("codec", 2), ("codec", 2), ("codec", MOST)]
    assert processes.asked == [*own, ("pretrain", 2)]


def test_a_stage_that_cannot_be_measured_is_named_and_the_others_are(plan, processes, tmp_path):
    processes.given = ["no memory"]
    assert f"! {alike(plan, 'encoder')} is not measured: no memory" in measured(plan, tmp_path)
    assert read_measured(tmp_path, plan).keys() == {alike(plan, "codec"), alike(plan, "pretrain")}


def test_seconds_of_a_cpu_say_nothing_about_an_accelerator(plan, processes, tmp_path, monkeypatch):
    measured(plan, tmp_path)
    monkeypatch.setattr(measuring, "unit_of_time", lambda: "device_seconds")
    assert read_measured(tmp_path, plan) == {}


@pytest.mark.slow
def test_the_reason_of_a_process_that_fails_is_one_line(tmp_path):
    job = dataclasses.replace(job_of("encoder"), config={"data": 3})
    with pytest.raises(NotMeasured) as failed:
        measuring._in_process(job, tmp_path, 2)
    assert "\n" not in str(failed.value) and "Error" in str(failed.value)
    assert not list(tmp_path.iterdir())
