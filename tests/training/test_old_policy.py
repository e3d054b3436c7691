"""A stage whose rollouts are made by a running average of its weights: DiffusionNFT's θ_old."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import test_step
from tests.training.test_prepare import preparing
from tests.training.test_step import batch
from tests.training.toy import Run, assert_resumes_to_the_last_bit, assert_trees_differ
from unicom_jax.training.stages.policy import old_share


def share_of(**settings):
    return old_share({"old_decay": 0.5, "old_decay_rate": 0.001, "old_decay_start": 0} | settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {0: 0.0, 100: 0.1, 500: 0.5, 9000: 0.5}),
        (
            {"old_decay": 0.999, "old_decay_rate": 0.0075, "old_decay_start": 75},
            {0: 0.0, 75: 0.0, 95: 0.15, 1000: 0.999},
        ),
    ],
    ids=["type 1", "type 2"],
)
def test_the_old_policys_share_follows_the_published_schedules(settings, expected):
    share = share_of(**settings)
    found = {step: float(share(jnp.int32(step))) for step in expected}
    assert found == pytest.approx(expected, abs=1e-6)


def taken(toy, steps=3):
    """The states after each of so many updates, each on a batch of its own rollouts."""
    one = test_step.trainer(toy)
    prepare, step, state, found = one.prepare_step(), one.train_step(), one.init_state(), []
    for number in range(steps):
        if number % toy.inner_steps == 0:
            made = jax.device_get(prepare(state, {}, batch()))
        state, _ = step(state, {}, made)
        found.append(jax.device_get((state.params, state.old)))
    return found


def test_an_average_that_keeps_nothing_of_itself_is_the_policy_bit_for_bit():
    never = preparing(old=lambda updates: 0.0 * updates)
    for (params, old), (plain, nothing) in zip(taken(never), taken(preparing()), strict=True):
        chex.assert_trees_all_equal(old, params, strict=True)
        chex.assert_trees_all_equal(params, plain, strict=True)
        assert nothing is None


def test_the_old_policy_is_the_recursion_over_batches_and_makes_the_rollouts():
    toy = preparing(old=lambda updates: jnp.float32(0.75), inner_steps=2)
    found = taken(toy, steps=4)
    expected = jax.device_get(test_step.trainer(toy).init_state().params)
    for update, (params, old) in enumerate(found, start=1):
        if update % 2 == 0:  # the last update on a batch
            expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, expected, params)
        chex.assert_trees_all_close(old, expected, rtol=1e-6)
    one = test_step.trainer(toy)
    state, prepare = one.init_state(), one.prepare_step()
    moved = state.replace(params=jax.tree.map(lambda w: w + 1, state.params))
    targets = [prepare(each, {}, batch())["y"] for each in (state, moved)]
    np.testing.assert_array_equal(*targets)  # the weights themselves make no rollouts
    behind = prepare(state.replace(old=moved.params), {}, batch())["y"]
    assert not np.array_equal(behind, targets[0])


def test_a_stage_with_an_old_policy_resumes_to_the_last_bit(tmp_path):
    def toy():
        return {"toy": preparing(old=share_of(old_decay_rate=0.1), inner_steps=2)}

    options = {"steps": 6, "save_every": 2, "eval_every": 2, "eval_batches": 1}
    whole = assert_resumes_to_the_last_bit(tmp_path, toy, **options)
    plain = Run(tmp_path / "plain", trainer={"toy": preparing(inner_steps=2)}, **options)
    assert_trees_differ(whole.weights, plain.weights)
