"""Cheers: the image side against plain torch, and what its parts do in a whole model."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.families.documents import lively
from tests.models.torch_weights import assert_close
from tests.tiny import tiny_config
from unicom_jax.core.flow import interpolate
from unicom_jax.families.build import build_unified
from unicom_jax.families.cheers import Latents
from unicom_jax.families.images import Noised
from unicom_jax.models.autoencoder import AutoencoderKLFlux2

AUTOENCODER = AutoencoderKLFlux2(3, (8, 16), resnets=1, groups=4, quant_conv=True)
PATCH, SIDE, FOLD = 4, 4, 2  # 16 pixels, 4 x 4 tokens, 2 x 2 slots
TOKENS, LATENT = SIDE**2, 12
RNG = np.random.default_rng(0)


def configured(canvas=(SIDE, SIDE), **overrides):
    config = tiny_config(
        unified__pathway="cheers",
        unified__fold=FOLD,
        data__patch=PATCH,
        data__image_size=PATCH * SIDE,
        data__scenes__sizes=((16, 16),),
        codec__autoencoder__path="autoencoder",
        **overrides,
    )
    config.unified.cheers.semantics.update({"depth": 2, "heads": 4, "kv_heads": 2})
    config.unified.cheers.details.update({"depth": 1, "heads": 4, "kv_heads": 2})
    config.codec.autoencoder.facts = {
        "kind": "AutoencoderKLFlux2",
        "sizes": dataclasses.asdict(AUTOENCODER),
        "canvas": canvas,
    }
    return config


MODEL = build_unified(configured())
IMAGES = MODEL.images
PARAMS = lively(IMAGES, scale=0.12)
GRIDS = np.full((2, 1, 2), SIDE, np.int32)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


CLEAN, NOISE, TIME = (
    normal(2, 1, TOKENS, LATENT),
    normal(2, 1, TOKENS, LATENT),
    np.float32([[0.1], [0.7]]),
)
BETWEEN = 0.2 * normal(32, 32)  # stands for the transformer


def at(time: np.ndarray, images=IMAGES) -> Noised:
    del images
    return Noised(interpolate(CLEAN, NOISE, time), jnp.asarray(time), GRIDS, CLEAN, NOISE)


def speed_of(images, params, noised: Noised):
    tokens, embedded = images.drawn(params, noised)
    return images.velocity(params, jnp.tanh(tokens @ BETWEEN), noised, embedded)


def test_the_image_side_is_the_papers():
    torch = pytest.importorskip("torch")
    from tests.models import cheers_torch as theirs

    def loss(params, noisy):
        noised = at(TIME).replace(noisy=noisy)
        speed = speed_of(IMAGES, params, noised)
        return jnp.sum(jnp.square(speed - (CLEAN - NOISE))), speed

    noisy = np.asarray(at(TIME).noisy)
    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, speed), (weights, inputs) = grad(PARAMS, noisy)

    model = theirs.load(
        theirs.Images(
            theirs.Decoder(3, (16, 8), 2, 4),
            theirs.Vision(PATCH, 32, 1, 2, 32, SIDE),
            theirs.Projector(32, 32, FOLD),
            theirs.Head((32, FOLD**2 * 32, 2, 4, 2), (32, LATENT, 1, 4, 2), FOLD),
        ),
        PARAMS,
    )
    given = torch.from_numpy(noisy[:, 0].copy()).requires_grad_()
    wanted = torch.from_numpy(CLEAN - NOISE)[:, 0]
    found = model(given, torch.from_numpy(TIME[:, 0]), torch.from_numpy(BETWEEN))
    torch.sum((found - wanted) ** 2).backward()
    assert_close(speed[:, 0], found.detach(), 1e-4, "velocity")
    assert_close(inputs[:, 0], given.grad, 1e-4, "latents")
    reference = theirs.gradients(model, PARAMS)
    ours = traverse_util.flatten_dict(weights, sep="/")
    held = [re.compile(pattern) for pattern in IMAGES.frozen(draws=True)]
    assert set(ours) - set(reference) == {
        path for path in ours if any(pattern.match(path) for pattern in held)
    }
    for path in set(ours) - set(reference):
        assert not np.any(ours[path]), path
    for path, value in reference.items():
        if not path.endswith("key/bias") and not path.endswith("to_k/bias"):  # no effect: rounding
            assert_close(ours[path], value, 1e-4, path)


@pytest.fixture(scope="module")
def drawn():
    return jax.jit(IMAGES.drawn)


def test_at_time_1_a_drawn_picture_is_the_one_that_is_read(drawn):
    ended = at(np.ones((2, 1), np.float32))
    np.testing.assert_array_equal(ended.noisy, CLEAN)
    tokens, _ = drawn(PARAMS, ended)
    seen, clean = jax.jit(IMAGES.looked_at)(PARAMS, Latents(CLEAN, GRIDS))
    np.testing.assert_allclose(tokens, seen, atol=1e-6)
    assert clean is seen or np.array_equal(clean, seen)
    assert seen.shape == (2, 1, TOKENS // FOLD**2, 32)


def test_slots_are_not_told_the_time(drawn):
    early, late = at(TIME), at(TIME).replace(time=jnp.asarray(1 - TIME))
    for one, other in zip(drawn(PARAMS, early), drawn(PARAMS, late), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.allclose(drawn(PARAMS, early)[0], drawn(PARAMS, at(1 - TIME))[0], atol=1e-3)
