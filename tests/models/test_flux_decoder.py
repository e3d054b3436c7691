"""FLUX as the pixel decoder: its conventions, its padding and its configuration."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.families.documents import lively
from tests.models.flux_twin import SMALL
from tests.models.torch_weights import assert_close
from tests.tiny import tiny_config
from unicom_jax.core import flow
from unicom_jax.core.attention import interval_mask
from unicom_jax.families.build import build_codec
from unicom_jax.models.flux_decoder import FluxDecoder
from unicom_jax.models.streams import joint_mask

DECODER = FluxDecoder(
    transformer=dataclasses.replace(SMALL, double_depth=1, single_depth=1),
    feature_dim=5,
    guidance=2.0,
)
DRAW = np.random.default_rng(0).standard_normal
GRIDS = jnp.array([[2, 3], [2, 2]])
VALID = np.arange(6) < np.array([6, 4])[:, None]
DATA, NOISE, CONDITION = (jnp.asarray(DRAW((2, 6, n)), jnp.float32) for n in (8, 8, 5))
TIME = jnp.array([0.2, 0.9])
PARAMS = lively(DECODER)
predict, velocity = jax.jit(DECODER), jax.jit(DECODER.velocity)


# --- conventions


def test_velocity_is_minus_what_flux_says_at_sigma_one_minus_time():
    said = jax.jit(DECODER.transformer)(
        PARAMS["transformer"],
        NOISE[:1],
        jax.jit(DECODER.projector)(PARAMS["projector"], CONDITION[:1]),
        pooled=jnp.zeros((1, SMALL.pooled_dim)),
        sigma=jnp.array([0.8]),
        image_places=jnp.array([[[0, row, col] for row in range(2) for col in range(3)]]),
        context_places=jnp.zeros((1, 6, 3)),
        guidance=jnp.array([2.0]),
    )
    speed = velocity(PARAMS, NOISE, TIME, CONDITION, GRIDS)
    assert_close(speed[:1], -said, 1e-5)


def test_the_loss_is_the_squared_error_of_the_velocity_over_real_tokens():
    noisy = flow.interpolate(DATA, NOISE, TIME)
    speed = predict(PARAMS, noisy, TIME, CONDITION, GRIDS)
    terms, clean = jax.jit(DECODER.loss)(PARAMS, DATA, NOISE, TIME, CONDITION, GRIDS)
    total, count = terms["flow"]
    squares = np.square(speed - (DATA - NOISE)).mean(-1) * VALID
    np.testing.assert_allclose(total, squares.sum(), rtol=1e-5)
    assert float(count) == VALID.sum()
    ends = (noisy + (1 - TIME)[:, None, None] * speed) * VALID[..., None]
    np.testing.assert_allclose(clean, ends, atol=1e-5)


def test_the_sampler_is_the_scheduler_of_diffusers():
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    # As FLUX's pipeline calls it: its own sigmas, a shift exp(mu) that grows with the picture.
    steps, mu = 4, 0.9
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    state = torch.from_numpy(np.array(NOISE))
    for timestep in scheduler.timesteps:
        time = jnp.full(2, 1 - float(timestep) / 1000)
        said = -velocity(PARAMS, jnp.asarray(state.numpy()), time, CONDITION, GRIDS)
        state = scheduler.step(torch.from_numpy(np.array(said)), timestep, state)[0]
    sample = jax.jit(partial(DECODER.sample, steps=steps, shift=math.exp(mu)))
    painted = sample(PARAMS, NOISE, CONDITION, GRIDS)
    assert_close(painted, state.numpy() * VALID[..., None], 1e-4)


def test_a_fixed_shift_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    # With sigmas of our own: without, it shifts the range that it has shifted before.
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 5, 5))
    np.testing.assert_allclose(1 - flow.time_grid(5, 3.0), scheduler.sigmas, atol=1e-6)


# --- padding


def test_everybody_sees_the_real_tokens_of_both_parts():
    real = GRIDS[:, 0] * GRIDS[:, 1]
    seen = interval_mask(joint_mask(real, real, 6, 6), 12)
    expected = np.concatenate([VALID, VALID], axis=1)
    np.testing.assert_array_equal(seen, np.broadcast_to(expected[:, None], (2, 12, 12)))


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_padding_is_zero_and_reaches_nobody(backend):
    transformer = dataclasses.replace(DECODER.transformer, attention_backend=backend)
    decoder = jax.jit(dataclasses.replace(DECODER, transformer=transformer))
    padded = decoder(PARAMS, NOISE, TIME, CONDITION, GRIDS)
    assert not np.any(padded[1, 4:])
    other = decoder(PARAMS, NOISE.at[1, 4:].set(9.0), TIME, CONDITION.at[1, 4:].set(9.0), GRIDS)
    np.testing.assert_array_equal(other, padded)
    alone = predict(PARAMS, NOISE[1:, :4], TIME[1:], CONDITION[1:, :4], GRIDS[1:])
    assert_close(padded[1:, :4], alone, 1e-5)


def test_an_absent_picture_is_zero_and_harms_no_gradient():
    grids = GRIDS.at[1].set(0)

    def loss(params):
        terms, _ = DECODER.loss(params, DATA, NOISE, TIME, CONDITION, grids)
        total, count = terms["flow"]
        return total / count

    assert not np.any(predict(PARAMS, NOISE, TIME, CONDITION, grids)[1])
    chex.assert_tree_all_finite(jax.jit(jax.grad(loss))(PARAMS))


# --- what it reacts to


@pytest.mark.parametrize(
    "change",
    [
        {"time": TIME + 0.05},
        {"condition": CONDITION + 0.5},
        {"grids": jnp.array([[3, 2], [2, 2]])},
    ],
    ids=lambda change: next(iter(change)),
)
def test_it_reacts_to_time_condition_and_places(change):
    arguments = {"noisy": NOISE, "time": TIME, "condition": CONDITION, "grids": GRIDS}
    plain = predict(PARAMS, **arguments)
    assert np.abs(predict(PARAMS, **(arguments | change)) - plain)[0].max() > 1e-3


def test_bf16_activations_give_fp32_predictions_close_to_those_of_fp32():
    weights = lively(DECODER, scale=0.05)
    half = jax.jit(dataclasses.replace(DECODER, compute_dtype="bfloat16"))
    found = half(weights, NOISE, TIME, CONDITION, GRIDS)
    assert found.dtype == jnp.float32
    assert_close(found, predict(weights, NOISE, TIME, CONDITION, GRIDS), 0.03)


# --- configuration

SIZES = {"sizes": {"latent_channels": 4, "widths": (8, 8), "resnets": 1, "groups": 4}}
LATENT = {
    "codec__autoencoder__path": "given",
    "codec__autoencoder__facts": {**SIZES, "canvas": (2, 2)},
    "codec__decoder__kind": "flux",
}


def test_a_configured_decoder_has_the_sizes_of_its_keys():
    config = tiny_config(**LATENT, codec__decoder__flux__channels=256, compute_dtype="bfloat16")
    decoder = build_codec(config).pixel_decoder
    keys = config.codec.decoder.flux
    assert decoder.channels == 256 and decoder.feature_dim == 32
    assert decoder.transformer.width == keys.heads * keys.head_dim
    assert decoder.compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec__decoder__kind": "unet"}, "kind='unet' is not one of dit, flux"),
        ({"codec__decoder__kind": "flux"}, r"flux paints latents; set codec\.autoencoder\.path"),
        (LATENT, r"flux\.channels=64, but a token has 256: data\.patch=16"),
    ],
    ids=["unknown", "pixels", "channels"],
)
def test_what_does_not_fit_is_named_with_the_fix(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        build_codec(tiny_config(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channels": 16}, "16 channels in and 8 out is not a pixel decoder"),
        ({"rope_dims": (8, 8)}, "not of three axes"),
    ],
)
def test_a_flux_that_cannot_paint_an_image_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FluxDecoder(transformer=dataclasses.replace(SMALL, **change), feature_dim=5)
