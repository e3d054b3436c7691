"""The control: a reward that says nothing, the same whenever a step is made again."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from tests.rl.conftest import GROUP
from unicom_jax.rl.rewards import by_chance
from unicom_jax.rl.rollouts import chance_of, row_keys
from unicom_jax.rl.samples import Originals, Samples
from unicom_jax.runs.stages import START
from unicom_jax.training.stages.policy import captioner_stage, drawer_stage, joint_stage

STAGES = {
    "g4u": (captioner_stage, lambda made: made.scores),
    "u4g": (drawer_stage, lambda made: made.scores),
    "jointly": (joint_stage, lambda made: made.drawings.scores),
}


def test_it_is_uniform_and_follows_from_the_key_alone():
    one, other = (np.asarray(chance_of(jax.random.key(seed), 4096)) for seed in (0, 1))
    assert one.min() >= 0 and one.max() < 1
    assert one.mean() == pytest.approx(0.5, abs=0.03) and one.std() == pytest.approx(
        0.289, abs=0.01
    )
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.06
    np.testing.assert_array_equal(one, chance_of(jax.random.key(0), 4096))
    found = by_chance({}, Originals(None, None), Samples(chance=one))
    np.testing.assert_array_equal(found, one)


def test_its_key_is_that_of_no_row_and_of_no_part():
    key = jax.random.key(3)
    mine = np.asarray(chance_of(key, 1))
    others = [*jax.random.split(key, 8), *row_keys(key, 64)]
    assert all(float(jax.random.uniform(one, (1,))[0]) != mine[0] for one in others)


def random(made, name):
    captions = {"captions": "data"} if name == "u4g" else {}
    return made(STAGES[name][0], name, rewards={"random": 1.0}, **captions)


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_can_take_it_alone_and_a_captioner_draws_nothing_for_it(made, name):
    """Traced, not run."""
    stage, frozen, batch = random(made, name)
    policy, key = stage.prepare.__self__, jax.random.key(0)
    found = STAGES[name][1](jax.eval_shape(stage.prepare, frozen[START], frozen, batch, key))
    drawings = policy.drawer.group if name == "jointly" else 1
    assert found.parts.keys() == {"random"}
    assert found.total.shape == (2 * GROUP * drawings,)
    if name == "g4u":
        assert not policy.draws


@pytest.mark.slow
def test_it_is_a_function_of_seed_and_step_and_not_of_what_was_sampled(made):
    """Other weights, the same rewards; another key, other ones."""
    stage, frozen, batch = random(made, "g4u")
    prepare, start = jax.jit(stage.prepare), frozen[START]
    changed = {**start, "transformer": jax.tree.map(lambda x: 1.1 * x, start["transformer"])}
    one, other = (
        prepare(weights, frozen, batch, jax.random.key(1)) for weights in (start, changed)
    )
    np.testing.assert_array_equal(one.scores.total, other.scores.total)
    again = prepare(start, frozen, batch, jax.random.key(2))
    assert (np.asarray(one.scores.total) != np.asarray(again.scores.total)).all()
    assert (np.asarray(one.old) != np.asarray(other.old)).any()
