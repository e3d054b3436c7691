"""One step: accumulation, freezing, skipping, averaging. A small regression model stands in."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import base
from unicom_jax.core.layers import Linear
from unicom_jax.core.module import Module
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.training.optimizers import make_optimizer
from unicom_jax.training.state import check_freeze, merge, split
from unicom_jax.training.step import Stage, Trainer


@dataclasses.dataclass(frozen=True)
class TwoLayers(Module):
    """(B, 3) -> (B, 2)."""

    def specs(self):
        return {"first": Linear(3, 4).specs(), "second": Linear(4, 2).specs()}

    def __call__(self, params, x):
        return Linear(4, 2)(params["second"], jnp.tanh(Linear(3, 4)(params["first"], x)))


def stage(**changes) -> Stage:
    """Rows carry weights, so that parts of a batch count differently; the noise is per row."""

    def loss(params, frozen, batch, keys):
        noise = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
        error = jnp.square(TwoLayers()(params, batch["x"]) - batch["y"] - 0.1 * noise).sum(-1)
        weight = batch["weight"]
        return {
            "main": (jnp.sum(error * weight), jnp.sum(weight)),
            "rare": (jnp.sum(jnp.abs(error) * (weight > 1)), jnp.sum(weight > 1)),
        }

    return Stage("toy", TwoLayers(), loss, {"main": 1.0, "rare": 0.5}, **changes)


def trainer(
    toy: Stage | None = None, *, settings: dict | None = None, steps: int = 100, **options
) -> Trainer:
    """Of a stage of so many `steps`; `settings` are configuration keys, the rest are fields."""
    toy = toy or stage()
    config = base.training(**{"warmup_steps": 1, "learning_rate": 0.01, **(settings or {})})
    trained, _ = split(toy.module.specs(), toy.freeze)
    optimizer, schedule = make_optimizer(config, trained, steps)
    return Trainer(toy, optimizer, schedule, make_mesh("fsdp=-1"), seed=3, **options)


def batch(rows: int = 8) -> dict:
    rng = np.random.default_rng(0)
    return {
        "x": rng.standard_normal((rows, 3)).astype(np.float32),
        "y": rng.standard_normal((rows, 2)).astype(np.float32),
        "weight": rng.integers(0, 3, rows).astype(np.float32),
    }


def run(one: Trainer, steps: int = 3, data=None):
    state, step = one.init_state(), one.train_step()
    for _ in range(steps):
        state, metrics = step(state, {}, batch() if data is None else data)
    return state, metrics, step


@pytest.mark.parametrize("parts", [1, 4])
def test_a_term_counts_once_its_start_is_reached(parts):
    """Two updates without it, then one with it."""
    alone, late = stage(), stage(starts={"rare": 2})
    alone = dataclasses.replace(alone, weights={"main": 1.0})

    def differ(steps):
        one, other = (run(trainer(toy, accumulate=parts), steps)[0].params for toy in (alone, late))
        return max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), one, other)))

    assert differ(2) < 1e-6 < 1e-4 < differ(3)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulating_parts_equals_one_big_batch(parts):
    (whole, whole_metrics, _), (summed, metrics, _) = run(trainer()), run(trainer(accumulate=parts))
    chex.assert_trees_all_close(whole.params, summed.params, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(metrics["loss"], whole_metrics["loss"], rtol=1e-5)


def test_a_stage_whose_rows_see_each_other_refuses_accumulation():
    with pytest.raises(ValueError, match="accumulate=1"):
        trainer(stage(rows_are_independent=False), accumulate=2)


def test_frozen_weights_stay_and_have_no_optimizer_state():
    one = trainer(stage(freeze=("first/.*",)))
    before = one.init_state().params
    state, _, _ = run(one)
    np.testing.assert_array_equal(state.params["first"]["kernel"], before["first"]["kernel"])
    assert not np.array_equal(state.params["second"]["kernel"], before["second"]["kernel"])
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.opt_state)]
    assert (3, 4) not in shapes and (4, 2) in shapes


def test_a_freeze_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"freeze='frist/.\*'"):
        check_freeze(TwoLayers().specs(), ("frist/.*",))


def test_a_step_with_non_finite_gradients_changes_nothing_and_is_counted():
    one = trainer(ema_decay=0.5)
    state, step = one.init_state(), one.train_step()
    state, _ = step(state, {}, batch())
    kept = jax.tree.map(np.array, (state.params, state.ema))
    bad = batch()
    bad["x"][0, 0] = np.nan
    state, metrics = step(state, {}, bad)
    assert int(metrics["skipped_steps"]) == 1 and int(metrics["skipped_in_a_row"]) == 1
    chex.assert_trees_all_equal(kept, (state.params, state.ema))
    state, metrics = step(state, {}, batch())
    assert int(metrics["skipped_steps"]) == 1 and int(metrics["skipped_in_a_row"]) == 0


def test_the_average_is_that_of_the_recursion_and_is_what_is_used():
    one = trainer(ema_decay=0.9)
    state, step = one.init_state(), one.train_step()
    expected = np.array(state.params["first"]["kernel"])
    for _ in range(4):
        state, _ = step(state, {}, batch())
        expected = 0.9 * expected + 0.1 * np.array(state.params["first"]["kernel"])
    used = one.weights_for_use(state)["first"]["kernel"]
    np.testing.assert_allclose(used, expected, rtol=1e-6)


def test_a_young_average_forgets_where_it_started():
    one = trainer(ema_decay=0.9, ema_warmup=True)
    state, step = one.init_state(), one.train_step()
    expected = np.array(state.params["first"]["kernel"])
    for done in range(3):
        state, _ = step(state, {}, batch())
        decay = min(0.9, (1 + done) / (10 + done))
        expected = decay * expected + (1 - decay) * np.array(state.params["first"]["kernel"])
    np.testing.assert_allclose(state.ema["first"]["kernel"], expected, rtol=1e-6)


def test_the_reported_learning_rate_is_that_of_the_applied_updates():
    """The update itself shows the rate: AdamW's first ones have the size of the rate."""
    one = trainer(settings={"warmup_steps": 4})
    state, step = one.init_state(), one.train_step()
    bad = batch()
    bad["x"][0, 0] = np.nan
    rates, moved = [], []
    for data in (bad, bad, bad, batch(), batch()):
        before = np.array(state.params["second"]["bias"])
        state, metrics = step(state, {}, data)
        rates.append(float(metrics["learning_rate"]))
        moved.append(np.abs(np.array(state.params["second"]["bias"]) - before).max())
    np.testing.assert_allclose(rates, [0.0025, 0.0025, 0.0025, 0.0025, 0.005], rtol=1e-6)
    np.testing.assert_allclose(moved[:4], [0, 0, 0, 0.0025], rtol=0.01)
    assert one.next_rate(state) == pytest.approx(0.0075)


def test_evaluation_in_parts_gives_the_terms_of_the_whole_batch():
    whole, parts = trainer(), trainer(accumulate=4)
    params = whole.init_state().params
    seen = []

    def loss(params, frozen, data, keys):
        seen.append(len(keys))
        return whole.stage.loss(params, frozen, data, keys)

    parts = dataclasses.replace(parts, stage=dataclasses.replace(parts.stage, loss=loss))
    terms = jax.device_get(parts.eval_step()(params, {}, batch()))
    expected = jax.device_get(whole.eval_step()(params, {}, batch()))
    chex.assert_trees_all_close(terms, expected, rtol=1e-6)
    assert set(seen) == {2}  # two of the eight rows at a time


def test_weights_to_start_from_that_lack_one_are_refused_not_filled_up():
    params = TwoLayers().init(jax.random.key(0))
    del params["second"]["kernel"]
    with pytest.raises(ValueError, match="was given no second/kernel to start from"):
        trainer().init_state(params)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_each_optimizer_lowers_the_loss_and_compiles_once(name):
    chex.clear_trace_counter()
    toy = stage()
    toy = dataclasses.replace(toy, loss=chex.assert_max_traces(toy.loss, n=1))
    one = trainer(toy, settings={"optimizer": name})
    state, step = one.init_state(), one.train_step()
    losses = []
    for _ in range(60):
        state, metrics = step(state, {}, batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.7 * losses[0]


def test_shardings_of_the_state_do_not_drift():
    one = trainer(ema_decay=0.9)
    state, _, _ = run(one)
    wanted = jax.tree.leaves(one.shardings())
    actual = [leaf.sharding for leaf in jax.tree.leaves(state)]
    assert all(a.is_equivalent_to(w, 2) for a, w in zip(actual, wanted, strict=True))


def test_split_and_merge_are_inverse():
    tree = {"a": {"x": 1, "y": 2}, "b": 3, "without weights": {}}
    trained, held = split(tree, ("a/x",))
    assert held == {"a": {"x": 1}} and merge(trained, held) == tree
