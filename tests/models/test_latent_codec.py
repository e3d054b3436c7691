"""What every latent codec promises to the model that draws in it."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.families.documents import lively
from tests.models.diffusers_folder import SMALL, SMALL2
from tests.tiny import tiny_config
from unicom_jax.families.build import build_codec
from unicom_jax.models.latent_codec import AutoencoderCodec
from unicom_jax.models.paint_space import LatentSpace

CODECS = {
    "compressor": lambda: build_codec(tiny_config()),
    "pooling compressor": lambda: build_codec(tiny_config(codec__compressor="pool", codec__pool=2)),
    "autoencoder": lambda: AutoencoderCodec(LatentSpace(SMALL, 4, 2, 2)),
    "autoencoder with statistics": lambda: AutoencoderCodec(LatentSpace(SMALL2, 4, 2, 2)),
}
GRIDS = jnp.array([[2, 2]])


@pytest.fixture(scope="module", params=CODECS)
def codec(request):
    return CODECS[request.param]()


@pytest.fixture(scope="module")
def case(codec):
    """Weights and what the codec reads of one picture of 2 x 2 patches."""
    params = lively(codec)
    for name in {"std", "variance"} & params.get("statistics", {}).keys():
        params["statistics"][name] = jnp.abs(params["statistics"][name]) + 0.5
    channels = 32 if codec.reads == "features" else 48
    inputs = np.random.default_rng(0).uniform(-1, 1, (1, 4, channels)).astype(np.float32)
    return params, jnp.asarray(inputs)


@pytest.fixture(scope="module")
def latents(codec, case):
    params, inputs = case
    return jax.jit(codec.encode)(params, inputs, GRIDS)


def test_a_picture_has_a_latent_for_every_place_of_its_grid(codec, latents):
    rows, columns = codec.grid(GRIDS)[0]
    assert latents.shape == (1, rows * columns, codec.latent_dim)


def test_normalising_is_undone_by_denormalising(codec, case, latents):
    params, _ = case
    raw = codec.denormalise(params, latents)
    np.testing.assert_allclose(codec.normalise(params, raw), latents, rtol=1e-5, atol=1e-6)


def test_latents_are_decoded_to_a_token_for_every_patch(codec, case, latents):
    params, _ = case
    noise = jnp.zeros((1, 4, 768 if codec.reads == "features" else 48))
    painted = jax.jit(partial(codec.decode, steps=1))(params, latents, GRIDS, noise)
    assert painted.shape == noise.shape and bool(jnp.isfinite(painted).all())


def test_pixels_of_0_to_1_are_the_same_pictures_in_the_range_of_released_weights():
    space = LatentSpace(SMALL, 4, 2, 2)
    signed, unit = AutoencoderCodec(space), AutoencoderCodec(space, darkest=0.0)
    params = lively(signed)
    inputs = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 4, 48)), jnp.float32)
    latents = unit.encode(params, inputs, GRIDS)
    np.testing.assert_array_equal(latents, signed.encode(params, (inputs + 1) / 2, GRIDS))
    painted = signed.decode(params, latents, GRIDS)
    np.testing.assert_allclose(unit.decode(params, latents, GRIDS), 2 * painted - 1, rtol=1e-6)
