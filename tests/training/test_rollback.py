"""Bad data that does not end: back to the last good checkpoint, and on past the bad batches."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.toy import Killed, Run
from unicom_jax.evaluation.report import write_report
from unicom_jax.runs import checkpoint as files
from unicom_jax.training import spikes
from unicom_jax.training.loop import LoopConfig
from unicom_jax.training.saving import TrainingError
from unicom_jax.training.stopping import Stopped

# Checkpoint at 3, none at 6: batch 5 is bad. After batch 6 two steps in a row were skipped.
BAD = {"stream": {"bad": (5, 6)}, "max_skipped": 2, "max_rollbacks": 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    """A run that went back and was never stopped."""
    return Run(tmp_path_factory.mktemp("whole"), **BAD)


def test_a_run_that_goes_back_ends_as_one_that_never_saw_the_batches_since(whole, tmp_path):
    assert whole.error is None
    clean = Run(tmp_path, stream={"skip": range(3, 7)})
    assert clean.streams[0].read == [0, 1, 2, 7, 8, 9, 10, 11]
    chex.assert_trees_all_equal(whole.weights, clean.weights, strict=True)


def test_batches_are_read_once_each_and_steps_counted_without_gap_or_double(whole):
    assert [stream.read for stream in whole.streams] == [list(range(12))]
    assert [line["step"] for line in whole.lines] == list(range(1, 9))


def test_metrics_say_how_often_and_how_many_batches_were_left_behind(whole):
    assert [line["rollbacks"] for line in whole.lines] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert [line["data_offset"] for line in whole.lines] == [0, 0, 0, 4, 4, 4, 4, 4]
    line = "! toy: 2 steps in a row up to step 7 had non-finite gradients; rolls back to step 3 and"
    assert line in whole.said and "(rollback 1 of 1)" in whole.said


# Among the skipped steps, right after going back, and after a checkpoint was saved since.
@pytest.mark.parametrize("batch", [6, 7, 8, 11])
def test_a_killed_run_ends_as_one_that_was_never_killed(whole, tmp_path, batch):
    settings = {**BAD, "stream": {**BAD["stream"], "kill_at": batch}}
    assert isinstance(Run(tmp_path, **settings).error, Killed)
    again = Run(tmp_path, **BAD)
    assert again.error is None
    chex.assert_trees_all_equal(again.weights, whole.weights, strict=True)
    assert again.curve == whole.curve


def stop_after(questions: int):
    asked = iter(range(1, 99))
    return lambda: next(asked) >= questions


# Steps 4 and 5 are good, but no regular checkpoints to go back to. Step 6 would be one, and is
# skipped: so the run that is to stop there does a step later. Those behind (8, 1) went back before.
@pytest.mark.parametrize("lives", [(4, 1), (5, 1), (6,), (8, 1)])
def test_a_stopped_run_ends_as_one_that_was_never_stopped(whole, tmp_path, lives):
    for questions in lives:
        stopped = Run(tmp_path, stop=stop_after(questions), keep=1, **BAD)
        assert isinstance(stopped.error, Stopped)
    again = Run(tmp_path, **BAD, keep=1)
    assert again.error is None
    chex.assert_trees_all_equal(again.weights, whole.weights, strict=True)
    assert again.curve == whole.curve


def test_a_run_that_was_stopped_among_skipped_steps_goes_back_as_one_that_was_not(tmp_path):
    settings = {**BAD, "stream": {"bad": (4, 5)}, "keep": 1}
    whole = Run(tmp_path / "whole", **settings)
    Run(tmp_path / "stopped", stop=stop_after(5), **settings)
    assert files.stage_steps(tmp_path, "stopped") == [3, 5]
    again = Run(tmp_path / "stopped", **settings)
    chex.assert_trees_all_equal(again.weights, whole.weights, strict=True)
    assert again.curve == whole.curve


def test_checkpoints_of_the_time_that_was_left_behind_are_gone(tmp_path):
    Run(tmp_path, stop=stop_after(5), **BAD)
    assert files.stage_steps(tmp_path.parent, tmp_path.name) == [3, 5]
    Run(tmp_path, **{**BAD, "stream": {"bad": (5, 6), "kill_at": 8}})
    assert files.stage_steps(tmp_path.parent, tmp_path.name) == [3]


def test_training_goes_back_so_many_times_and_then_stops(tmp_path):
    run = Run(tmp_path, stream={"bad": range(4, 99)}, max_skipped=2, max_rollbacks=2)
    assert run.said.count("rolls back to step 3") == 2
    line = str(run.error)
    assert isinstance(run.error, TrainingError) and "after 2 rollbacks; the last good" in line
    assert line.endswith("with a lower --config.toy.learning_rate and --allow-change")
    assert "2 steps in a row up to step 5 had non-finite gradients" in line and "\n" not in line


def test_the_steps_that_training_stopped_at_are_in_its_metrics_and_its_report(tmp_path):
    run = Run(tmp_path / "toy", stream={"bad": range(5, 40)}, max_skipped=2)
    assert isinstance(run.error, TrainingError)
    assert run.lines[-1]["skipped_in_a_row"] == 2
    page = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<b>toy</b> diverged: " in page


def test_before_the_first_checkpoint_there_is_no_way_back(tmp_path):
    run = Run(tmp_path, stream={"bad": (0, 1)}, max_skipped=2, max_rollbacks=2)
    assert "before the first checkpoint; the last good" in str(run.error)


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_gone_back_to(tmp_path):
    Run(tmp_path, stream={"kill_at": 7})
    (tmp_path / "checkpoints" / "6" / files.POSITION / "metadata").write_text("")
    run = Run(tmp_path, **BAD)
    assert "rolls back to step 3" in run.said and run.error is None


# ---- a changed schedule -------------------------------------------------------------------------


def test_more_steps_of_a_finished_cosine_say_that_the_learning_rate_rises_again(tmp_path):
    cosine = {"settings": {"schedule": "cosine", "warmup_steps": 0}}
    Run(tmp_path, steps=4, trainer={**cosine, "steps": 4})
    longer = Run(tmp_path, steps=8, trainer={**cosine, "steps": 8})
    line = "! toy: the learning rate of step 4 was 0 when the checkpoint was saved and is 0.005 now"
    assert line in longer.said
    (said,) = (text for text in longer.said.splitlines() if text.startswith(line))
    assert "tuned_steps" in said and "b1, b2, eps and weight_decay changed too" in said
    assert longer.lines[4]["learning_rate"] == pytest.approx(0.005)


def test_a_resumed_run_that_is_unchanged_says_nothing_of_its_learning_rate(tmp_path):
    Run(tmp_path, stop=stop_after(2))
    again = Run(tmp_path)
    assert "resumes from" in again.said and "learning rate" not in again.said


# ---- spikes -------------------------------------------------------------------------------------

WATCHED = {"trainer": {"spike_factor": 10.0}, "log_every": 1}


@pytest.fixture
def short_window(monkeypatch):
    monkeypatch.setattr(spikes, "WINDOW", 4)


def test_a_step_with_a_spiking_gradient_changes_nothing_and_is_counted(short_window, tmp_path):
    run = Run(tmp_path / "spike", stream={"large": (5,)}, **WATCHED)
    assert [line["skipped_steps"] for line in run.lines] == [0, 0, 0, 0, 0, 1, 1, 1]
    assert run.lines[5]["gradient_norm_ratio"] > 100 > 10 > run.lines[4]["gradient_norm_ratio"]
    nan = Run(tmp_path / "nan", stream={"bad": (5,)}, **WATCHED)
    chex.assert_trees_all_equal(run.weights, nan.weights, strict=True)  # skipped alike


def skipped(norms):
    """Which steps with gradients of these norms are rejected."""

    @jax.jit
    def step(window, numbered):
        number, norm = numbered
        grads, _, window = spikes.reject_spike({"w": norm}, norm, window, number, 10.0)
        return window, jnp.isnan(grads["w"])

    numbered = jnp.arange(len(norms)), jnp.asarray(norms, jnp.float32)
    return np.array(jax.lax.scan(step, spikes.no_norms(), numbered)[1])


def test_a_gradient_norm_that_rises_for_good_is_skipped_for_fewer_steps_than_end_a_run():
    rejected = skipped([1.0] * 100 + [50.0] * 40)
    (steps,) = np.nonzero(rejected)
    assert list(steps) == list(range(100, 108)) and len(steps) < LoopConfig(1).max_skipped


def test_single_spikes_move_neither_median_so_all_of_them_are_skipped():
    norms = np.ones(140)
    norms[70::5] = 50.0
    assert list(np.nonzero(skipped(norms))[0]) == list(range(70, 140, 5))


def test_a_norm_that_falls_for_good_skips_nothing():
    assert not skipped([50.0] * 100 + [1.0] * 40).any()


def test_until_half_the_window_is_known_nothing_is_a_spike(short_window, tmp_path):
    run = Run(tmp_path, stream={"large": (1,)}, steps=3, **WATCHED)
    assert [line["skipped_steps"] for line in run.lines] == [0, 0, 0]
    assert [line["gradient_norm_ratio"] for line in run.lines[:2]] == [0, 0]


def test_spikes_that_do_not_end_are_gone_back_from_and_named(short_window, tmp_path):
    settings = {**WATCHED, "max_skipped": 2, "max_rollbacks": 1, "save_every": 4}
    run = Run(tmp_path / "whole", stream={"large": (5, 6)}, **settings)
    assert "had gradients above spike_factor x their median; rolls back to step 4" in run.said
    clean = Run(tmp_path / "clean", stream={"skip": range(4, 7)}, **settings)
    assert run.error is None
    chex.assert_trees_all_equal(run.weights, clean.weights, strict=True)


def test_the_window_of_norms_is_resumed_to_the_last_bit(short_window, tmp_path):
    stream = {"large": (5,)}
    whole = Run(tmp_path / "whole", stream=stream, **WATCHED)
    Run(tmp_path / "killed", stream={**stream, "kill_at": 5}, **WATCHED)
    again = Run(tmp_path / "killed", stream=stream, **WATCHED)
    assert "resumes from the checkpoint of step 3" in again.said
    chex.assert_trees_all_equal(again.weights, whole.weights, strict=True)
    assert again.curve == whole.curve
