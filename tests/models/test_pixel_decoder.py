"""The pixel decoder: its start in closed form, padding, places, and that it learns."""

from __future__ import annotations

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.models.weights import trained
from unicom_jax.models.pixel_decoder import PixelDecoder

DECODER = PixelDecoder(channels=6, feature_dim=5, width=16, depth=2, heads=2, mlp_dim=24)
DRAW = np.random.default_rng(0).standard_normal
GRIDS = jnp.array([[2, 3], [2, 2]])
VALID = np.arange(6) < np.array([6, 4])[:, None]
PATCHES, NOISE, CONDITION = (jnp.asarray(DRAW((2, 6, n)), jnp.float32) for n in (6, 6, 5))
TIME = jnp.array([0.2, 0.98])


TRAINED = trained(DECODER)
predict = jax.jit(DECODER)


@pytest.fixture(scope="module")
def fresh():
    return jax.jit(DECODER.init)(jax.random.key(1))


def test_fresh_decoder_predicts_a_grey_image(fresh):
    np.testing.assert_array_equal(predict(fresh, NOISE, TIME, CONDITION, GRIDS), 0.0)


def test_loss_of_data_prediction_is_weighted_by_the_floored_distance(fresh):
    terms, clean = jax.jit(DECODER.loss)(fresh, PATCHES, NOISE, TIME, CONDITION, GRIDS)
    total, count = terms["flow"]
    weight = 1 / np.maximum(1 - np.asarray(TIME), 0.05) ** 2  # x̂ = 0, so the error is x itself
    squares = np.square(PATCHES).mean(-1) * VALID
    np.testing.assert_allclose(total, (weight[:, None] * squares).sum(), rtol=1e-5)
    assert float(count) == VALID.sum()
    assert not np.any(clean)


def test_loss_of_velocity_prediction_is_the_plain_squared_error(fresh):
    decoder = dataclasses.replace(DECODER, prediction="velocity")
    terms, clean = jax.jit(decoder.loss)(fresh, PATCHES, NOISE, TIME, CONDITION, GRIDS)
    total, _ = terms["flow"]
    squares = np.square(PATCHES - NOISE).mean(-1) * VALID
    np.testing.assert_allclose(total, squares.sum(), rtol=1e-5)
    time = np.asarray(TIME)[:, None, None]
    noisy = time * PATCHES + (1 - time) * NOISE  # v = 0: the state is its own end
    np.testing.assert_allclose(clean, noisy * VALID[..., None], atol=1e-6)


@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_sample_ends_on_the_predicted_image(fresh, sampler):
    sample = jax.jit(partial(DECODER.sample, steps=3, sampler=sampler))
    painted = sample(fresh, NOISE, CONDITION, GRIDS)
    np.testing.assert_allclose(painted, 0.0, atol=1e-5)  # a fresh decoder predicts 0 at all times


def test_velocity_leads_from_the_state_to_the_predicted_image():
    speed = jax.jit(DECODER.velocity)(TRAINED, NOISE, TIME, CONDITION, GRIDS)
    clean = predict(TRAINED, NOISE, TIME, CONDITION, GRIDS)
    arrived = NOISE + (1 - TIME)[:, None, None] * speed
    np.testing.assert_allclose(arrived * VALID[..., None], clean, atol=1e-4)


def test_padding_is_zero_and_reaches_nobody():
    padded = predict(TRAINED, NOISE, TIME, CONDITION, GRIDS)
    assert not np.any(padded[1, 4:])
    alone = predict(TRAINED, NOISE[1:, :4], TIME[1:], CONDITION[1:, :4], GRIDS[1:])
    np.testing.assert_allclose(padded[1:, :4], alone, atol=1e-5)


def test_places_matter():
    swapped = np.array([1, 0, 2, 3, 4, 5])
    plain = predict(TRAINED, NOISE, TIME, CONDITION, GRIDS)
    moved = predict(TRAINED, NOISE[:, swapped], TIME, CONDITION[:, swapped], GRIDS)
    assert np.abs(moved[0, swapped] - plain[0]).max() > 1e-3


def test_grid_shape_matters():
    plain = predict(TRAINED, NOISE, TIME, CONDITION, GRIDS)
    turned = predict(TRAINED, NOISE, TIME, CONDITION, GRIDS[:, ::-1])
    assert np.abs(turned[0] - plain[0]).max() > 1e-3
    np.testing.assert_allclose(turned[1], plain[1], atol=1e-6)  # 2 x 2 stays 2 x 2


@pytest.mark.parametrize("change", [{"time": TIME + 0.01}, {"condition": CONDITION + 0.1}])
def test_prediction_reacts_to_time_and_condition(change):
    arguments = {"noisy": NOISE, "time": TIME, "condition": CONDITION, "grids": GRIDS}
    plain = predict(TRAINED, **arguments)
    assert np.abs(predict(TRAINED, **(arguments | change)) - plain).max() > 1e-4


def test_bf16_condition_gives_fp32_predictions_close_to_those_of_fp32(fresh):
    half = predict(fresh | {"output": TRAINED["output"]}, NOISE, TIME, CONDITION, GRIDS)
    full = predict(
        fresh | {"output": TRAINED["output"]}, NOISE, TIME, CONDITION.astype(jnp.bfloat16), GRIDS
    )
    assert half.dtype == full.dtype == jnp.float32
    np.testing.assert_allclose(half, full, atol=0.1)


def test_remat_changes_no_gradient():
    def gradient(decoder):
        arguments = (PATCHES, NOISE, TIME, CONDITION, GRIDS)
        return jax.jit(jax.grad(lambda p: decoder.loss(p, *arguments)[0]["flow"][0]))(TRAINED)

    plain, again = gradient(DECODER), gradient(dataclasses.replace(DECODER, remat=True))
    chex.assert_trees_all_close(plain, again, rtol=2e-3, atol=1e-3)


def test_decoder_learns_to_paint_what_the_condition_says():
    decoder = dataclasses.replace(DECODER, depth=1)
    paint = jax.random.normal(jax.random.key(5), (5, 6)) / 3
    optimizer = optax.adam(1e-2)
    grids = jnp.full((16, 2), 2)

    def draw(key):
        keys = jax.random.split(key, 3)
        condition = jax.random.normal(keys[0], (16, 4, 5))
        noise = jax.random.normal(keys[1], (16, 4, 6))
        return condition @ paint, noise, jax.random.uniform(keys[2], (16,)), condition, grids

    def loss(params, key):
        terms, _ = decoder.loss(params, *draw(key))
        total, count = terms["flow"]
        return total / count

    def update(carry, key):
        params, state = carry
        grads = jax.grad(loss)(params, key)
        updates, state = optimizer.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    params = jax.jit(decoder.init)(jax.random.key(6))
    keys = jax.random.split(jax.random.key(7), 300)
    (params, _), _ = jax.jit(lambda c: jax.lax.scan(update, c, keys))(
        (params, optimizer.init(params))
    )
    target, noise, _, condition, _ = draw(jax.random.key(8))
    painted = jax.jit(partial(decoder.sample, steps=4))(params, noise, condition, grids)
    assert float(jnp.square(painted - target).mean() / jnp.square(target).mean()) < 0.2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prediction": "noise"}, "velocity"),
        ({"heads": 3}, "multiple of 2"),
        ({"heads": 16}, "even"),
    ],
)
def test_wrong_option_names_the_fix(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(DECODER, **change)
