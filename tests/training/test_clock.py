"""Goodput with a clock that the test turns: what counts as useful time, and what does not."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from tests.training.toy import Killed, Run
from unicom_jax.training import clock
from unicom_jax.training.clock import Clock


@pytest.fixture
def turn(monkeypatch):
    """`turn(3)`: three seconds pass."""
    now = [1000.0]

    def turned(seconds):
        now[0] += seconds

    stand_in = SimpleNamespace(time=lambda: now[0], perf_counter=lambda: now[0])
    monkeypatch.setattr(clock, "time", stand_in)
    return turned


def steps(one, count):
    one.window.steps += count


def test_compiling_saves_evaluation_and_skipped_steps_are_not_useful(turn, tmp_path):
    one = Clock(tmp_path)
    steps(one, 1)
    turn(10)
    assert one.report(0, compiled=True) == {"goodput": 0.0}
    steps(one, 4)
    turn(8)
    with one.pause("eval"):
        turn(3)
    with one.pause("save"):
        turn(1)
    assert one.window.rates(16, 0.0, None)["steps_per_second"] == pytest.approx(4 / 8)
    values = one.report(1, compiled=False)  # one of the four was skipped
    assert values == {"goodput": pytest.approx(6 / 22), "time/eval": 3, "time/save": 1}


def test_of_several_updates_a_step_the_skipped_share_is_not_useful(turn, tmp_path):
    one = Clock(tmp_path, updates=4)
    steps(one, 2)
    turn(8)
    assert one.report(2, compiled=False)["goodput"] == pytest.approx(6 / 8)  # two of eight


def test_a_new_process_knows_what_those_before_it_did_and_what_a_crash_lost(turn, tmp_path):
    one = Clock(tmp_path)
    steps(one, 2)
    turn(4)
    one.report(0, compiled=False)
    one.keep(2)
    steps(one, 3)
    turn(6)  # lost
    turn(10)  # nothing runs
    again = Clock(tmp_path, 2)
    steps(again, 2)
    turn(5)
    assert again.report(0, compiled=False)["goodput"] == pytest.approx(9 / 25)


def test_a_rollback_takes_useful_time_back(turn, tmp_path):
    one = Clock(tmp_path)
    for step in (2, 4):
        steps(one, 2)
        turn(5)
        one.report(0, compiled=False)
        one.keep(step)
    one.go_back(2, 0)
    assert one.goodput == pytest.approx(5 / 10)
    one.keep(2)
    assert json.loads((tmp_path / "goodput.json").read_text())["useful"] == {"2": 5.0}


def test_a_file_that_cannot_be_read_or_written_begins_anew(turn, tmp_path):
    (tmp_path / "goodput.json").write_text("{")
    one = Clock(tmp_path, 7)
    steps(one, 1)
    turn(2)
    assert one.report(0, compiled=False)["goodput"] == 1.0
    Clock(tmp_path / "gone", 0).keep(1)  # training continues


def test_other_processes_write_nothing(tmp_path):
    Clock(tmp_path, active=False).keep(1)
    assert not (tmp_path / "goodput.json").exists()


def test_a_run_reports_goodput_over_its_lives(tmp_path):
    settings = {"stream": {"kill_at": 5}, "eval_every": 4, "eval_batches": 1}
    assert isinstance(Run(tmp_path, **settings).error, Killed)
    before = json.loads((tmp_path / "goodput.json").read_text())
    assert set(before["useful"]) == {"3"} and before["useful"]["3"] > 0
    Run(tmp_path, eval_every=4, eval_batches=1)
    after = json.loads((tmp_path / "goodput.json").read_text())
    assert after["began"] == before["began"] and set(after["useful"]) == {"3", "6", "8"}
    shares = [line["goodput"] for line in Run(tmp_path).lines if "goodput" in line]
    assert len(shares) == 8 and all(0 <= share < 1 for share in shares) and shares[-1] > 0
    assert 0 < json.loads((tmp_path / "stage.json").read_text())["goodput"] < 1
