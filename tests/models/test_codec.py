"""The codec: features to normalised latents and back to pixels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.families.documents import lively
from tests.tiny import tiny_config
from unicom_jax.core.module import init_params
from unicom_jax.families.build import build_codec
from unicom_jax.models.codec import Codec

GRIDS = jnp.array([[2, 2], [2, 2]], jnp.int32)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return build_codec(tiny_config())


@pytest.fixture(scope="module")
def params(codec):
    weights = lively(codec)
    mean, std = jnp.linspace(-3.0, 3.0, 8), jnp.linspace(0.5, 4.0, 8)
    return {**weights, "statistics": {"mean": mean, "std": std}}


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).standard_normal((2, 4, 32)).astype(np.float32)


def test_fresh_statistics_leave_latents_as_they_are(codec):
    statistics = init_params(codec.specs()["statistics"], jax.random.key(0))
    np.testing.assert_array_equal(statistics["mean"], np.zeros(8))
    np.testing.assert_array_equal(statistics["std"], np.ones(8))


def test_denormalise_is_the_inverse_of_normalise(codec, params):
    raw = np.random.default_rng(1).standard_normal((2, 4, 8)).astype(np.float32)
    there = codec.normalise(params, raw)
    np.testing.assert_allclose(codec.denormalise(params, there), raw, atol=1e-5)
    expected = (raw - params["statistics"]["mean"]) / params["statistics"]["std"]
    np.testing.assert_allclose(there, expected, rtol=1e-6)


def test_what_is_drawn_is_the_normalised_compression(codec, params, features):
    @jax.jit
    def both(params):
        raw = codec.compress(params, features, GRIDS)
        return codec.encode(params, features, GRIDS), codec.normalise(params, raw)

    encoded, normalised = both(params)
    assert encoded.shape == (2, 4, 8) and encoded.dtype == jnp.float32
    np.testing.assert_allclose(encoded, normalised, rtol=1e-6)


def test_compression_is_in_full_precision_whatever_the_features_are_in(codec, params, features):
    assert codec.compress(params, features.astype(jnp.bfloat16), GRIDS).dtype == jnp.float32


def test_a_picture_follows_from_its_latents_and_its_noise(codec, params, features):
    latents = codec.encode(params, features, GRIDS)
    noise = np.random.default_rng(2).standard_normal((2, 4, 768)).astype(np.float32)
    decode = jax.jit(lambda latents, noise: codec.decode(params, latents, GRIDS, noise, 2))
    painted = decode(latents, noise)
    assert painted.shape == (2, 4, 768)
    np.testing.assert_array_equal(decode(latents, noise), painted)
    assert not np.allclose(decode(latents + 1, noise), painted)
    assert not np.allclose(decode(latents, -noise), painted)


def test_pictures_of_a_batch_do_not_touch_each_other(codec, params, features):
    noise = np.random.default_rng(3).standard_normal((2, 4, 768)).astype(np.float32)
    decode = jax.jit(lambda latents, noise: codec.decode(params, latents, GRIDS, noise, 2))
    latents = codec.encode(params, features, GRIDS)
    changed = decode(latents.at[1].add(1.0), noise)
    np.testing.assert_allclose(changed[0], decode(latents, noise)[0], atol=1e-6)


@pytest.mark.parametrize(
    ("overrides", "latents"),
    [
        ({"codec__compressor": "attention"}, (4, 8)),
        ({"codec__compressor": "mlp"}, (4, 8)),
        ({"codec__compressor": "pool", "codec__pool": 2}, (1, 8)),
        ({"codec__compressor": "identity"}, (4, 32)),
    ],
)
def test_every_compressor_of_the_config_goes_there_and_back(overrides, latents):
    codec = build_codec(tiny_config(**overrides))
    assert codec.latent_dim == latents[1]

    def there_and_back(params, features):
        encoded = codec.encode(params, features, GRIDS)
        return encoded, codec.decode(params, encoded, GRIDS, jnp.zeros((2, 4, 768)), 2)

    features = jax.ShapeDtypeStruct((2, 4, 32), jnp.float32)
    encoded, painted = jax.eval_shape(there_and_back, codec.abstract(), features)
    assert encoded.shape == (2, *latents) and painted.shape == (2, 4, 768)


def test_an_identity_codec_decompresses_to_the_very_features(features):
    codec = build_codec(tiny_config(codec__compressor="identity"))
    params = lively(codec)
    back = codec.decompress(params, codec.compress(params, features, GRIDS), GRIDS)
    np.testing.assert_array_equal(back, features)


@pytest.mark.parametrize(("key", "value"), [("prediction", "velocity"), ("rope_theta", 50.0)])
def test_the_pixel_decoder_has_the_prediction_and_the_places_of_the_configuration(key, value):
    decoder = build_codec(tiny_config(**{f"codec__decoder__{key}": value})).pixel_decoder
    assert getattr(decoder, key) == value != getattr(build_codec(tiny_config()).pixel_decoder, key)
