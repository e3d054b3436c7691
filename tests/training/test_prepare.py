"""A stage that prepares its batches, and several updates on each: the toy stage of `test_step`."""

from __future__ import annotations

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest

from tests.parallel.programs import on_eight_devices
from tests.training import test_step
from tests.training.test_step import TwoLayers, batch
from tests.training.toy import Run, assert_resumes_to_the_last_bit, assert_trees_differ


def prepare(params, frozen, batch, key):
    """Replaces the targets by what the present weights predict, and noise."""
    predicted = TwoLayers()(params, batch["x"])
    return {**batch, "y": predicted + jax.random.normal(key, predicted.shape)}


def preparing(**changes):
    return test_step.stage(prepare=prepare, **changes)


@pytest.fixture(scope="module")
def one():
    return test_step.trainer(preparing())


@pytest.fixture(scope="module")
def prepared(one):
    """`one`'s first state and what it makes of a batch."""
    state = one.init_state()
    return state, one.prepare_step()(state, {}, batch())


def by_hand(trainer, step_fn, prepare_fn, batches, updates):
    state = trainer.init_state()
    for data in batches:
        made = jax.device_get(prepare_fn(state, {}, data))
        for _ in range(updates):
            state, _ = step_fn(state, {}, made)
    return state


def test_no_gradient_passes_through_what_prepares(one, prepared):
    """The update is that of a stage that is given the prepared batch as data."""
    state, made = prepared
    updated, _ = one.train_step()(one.init_state(), {}, made)
    plain = test_step.trainer()
    given = jax.device_get(made)
    expected, _ = plain.train_step()(plain.init_state(), {}, given)
    chex.assert_trees_all_equal(updated.params, expected.params, strict=True)
    assert_trees_differ(updated.params, state.params)
    # With its gradient the targets, which follow the prediction, would cancel it.
    loss = preparing().loss

    def whole(params):
        made = prepare(params, {}, batch(), jax.random.key(0))
        total, _ = loss(params, {}, made, jax.random.split(jax.random.key(1), 8))["main"]
        return total

    through = jax.grad(whole)(state.params)
    assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(through)) < 1e-5


def test_what_is_prepared_is_a_function_of_seed_step_weights_and_stage(one, prepared):
    state, made = prepared
    again = one.prepare_step()(state, {}, batch())
    chex.assert_trees_all_equal(made, again, strict=True)
    others = {
        "step": (one, state.replace(step=state.step + 1)),
        "weights": (one, state.replace(params=jax.tree.map(lambda w: w + 1, state.params))),
        "seed": (dataclasses.replace(one, seed=4), state),
        "stage": (test_step.trainer(preparing(), noise_fold=1), state),
    }
    for name, (trainer, changed) in others.items():
        other = trainer.prepare_step()(changed, {}, batch())
        assert not np.array_equal(made["y"], other["y"]), name


def test_inner_steps_are_as_many_updates_on_what_was_prepared(one, tmp_path):
    run = Run(tmp_path / "run", trainer={"toy": preparing(inner_steps=2)}, steps=3)
    batches = [run.streams[0].__class__(start).__next__() for start in range(3)]
    state = by_hand(one, one.train_step(), one.prepare_step(), batches, updates=2)
    assert run.error is None and int(state.step) == 6
    chex.assert_trees_all_equal(run.weights, state.params, strict=True)
    assert [line["step"] for line in run.lines] == [1, 2, 3]


def test_a_preparing_stage_resumes_to_the_last_bit_and_compiles_each_program_once(tmp_path):
    def toy():
        return {"toy": preparing(inner_steps=2), "ema_decay": 0.5}

    options = {"steps": 6, "save_every": 2, "eval_every": 2, "eval_batches": 1}
    assert_resumes_to_the_last_bit(tmp_path, toy, **options)
    facts = json.loads((tmp_path / "whole" / "stage.json").read_text())
    assert facts["compilations"] == 1 and facts["prepare_compilations"] == 1


def test_fewer_inner_steps_than_one_are_refused():
    with pytest.raises(ValueError, match="inner_steps=0; give 1 or more"):
        preparing(inner_steps=0)


def test_programs_are_the_same_for_every_seed(one, prepared):
    """So the compilation cache serves all seeds; their noise differs nevertheless."""
    other = dataclasses.replace(one, seed=one.seed + 1, noise_fold=7)
    state = prepared[0]
    for first, second in (
        (one.train_step(), other.train_step()),
        (one.prepare_step(), other.prepare_step()),
    ):
        texts = [program.lower(state, {}, batch()).as_text() for program in (first, second)]
        assert texts[0] == texts[1]
    assert_trees_differ(other.prepare_step()(state, {}, batch()), prepared[1])


def test_stages_of_one_seed_draw_their_own_noise():
    """The toy's loss has noise; `noise_fold` is what the registry gives to each stage."""

    def first_loss(**options):
        return float(test_step.run(test_step.trainer(**options), steps=1)[1]["loss"])

    shared, one, other = first_loss(), first_loss(noise_fold=1), first_loss(noise_fold=2)
    assert len({shared, one, other}) == 3 and one == first_loss(noise_fold=1)


def test_batches_are_prepared_on_the_mesh_each_device_its_rows():
    printed = json.loads(on_eight_devices("-m", "tests.training.preparing_devices").stdout)
    one, eight = printed["one"], printed["eight"]
    assert set(one["rows"].values()) == {8} and set(eight["rows"].values()) == {1}
    np.testing.assert_allclose(eight["targets"], one["targets"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(eight["loss"], one["loss"], rtol=1e-4)
    assert one["compilations"] == eight["compilations"] == [1, 1]
