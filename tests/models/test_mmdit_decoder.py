"""Stable Diffusion 3 as the pixel decoder: its conventions, its padding and its configuration."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.families.documents import lively
from tests.models.diffusers_folder import SMALL as AUTOENCODER
from tests.models.mmdit_twin import SMALL
from tests.models.torch_weights import assert_close
from tests.tiny import tiny_config
from unicom_jax.families.build import build_codec
from unicom_jax.models.mmdit import POSITIONS
from unicom_jax.models.mmdit_decoder import MMDiTDecoder
from unicom_jax.training.stages.codec import codec_stage
from unicom_jax.training.state import split

DECODER = MMDiTDecoder(transformer=dataclasses.replace(SMALL, depth=2, dual_depth=1), feature_dim=5)
DRAW = np.random.default_rng(0).standard_normal
GRIDS = jnp.array([[2, 3], [2, 2]])
NOISE, CONDITION = (jnp.asarray(DRAW((2, 6, n)), jnp.float32) for n in (DECODER.channels, 5))
TIME = jnp.array([0.25, 0.875])
PARAMS = lively(DECODER)
velocity = jax.jit(DECODER.velocity)


def test_velocity_is_minus_what_the_network_says_at_sigma_one_minus_time():
    said = jax.jit(DECODER.transformer)(
        PARAMS["transformer"],
        NOISE[:1],
        jax.jit(DECODER.projector)(PARAMS["projector"], CONDITION[:1]),
        jnp.array([0.75]),
        GRIDS[:1],
        pooled=jnp.zeros((1, SMALL.pooled_dim)),
    )
    assert_close(velocity(PARAMS, NOISE, TIME, CONDITION, GRIDS)[:1], -said, 1e-5)


def test_padding_is_zero_and_reaches_nobody():
    padded = velocity(PARAMS, NOISE, TIME, CONDITION, GRIDS)
    assert not np.any(padded[1, 4:]) and np.all(np.any(padded[0], axis=-1))
    noise, condition = NOISE.at[1, 4:].set(9.0), CONDITION.at[1, 4:].set(9.0)
    np.testing.assert_array_equal(velocity(PARAMS, noise, TIME, condition, GRIDS), padded)


# --- configuration

LATENT = {
    "codec__autoencoder__path": "given",
    "codec__autoencoder__facts": {"sizes": dataclasses.asdict(AUTOENCODER), "canvas": (2, 2)},
    "codec__decoder__kind": "sd3",
}


def test_a_configured_decoder_has_the_sizes_of_its_keys_and_of_the_autoencoder():
    config = tiny_config(**LATENT, compute_dtype="bfloat16")
    decoder, keys = build_codec(config).pixel_decoder, config.codec.decoder.sd3
    transformer = decoder.transformer
    assert {name: getattr(transformer, name) for name in keys} == keys.to_dict()
    assert (transformer.latent_channels, transformer.patch) == (4, 8)  # 16 pixels are 8 latents
    assert decoder.channels == 4 * 8**2 and decoder.feature_dim == 32
    assert decoder.projector.hidden_dim == 2 * keys.context_dim
    assert decoder.compute_dtype == "bfloat16"


def test_the_codec_stage_trains_all_of_it_but_the_table_of_places():
    stage = codec_stage("codec", tiny_config(**LATENT), lambda: iter(()))
    trained, held = split(stage.module.abstract(), stage.freeze)
    assert held["pixel_decoder"].keys() == {"transformer"}
    assert held["pixel_decoder"]["transformer"].keys() == {POSITIONS}
    whole, trained = stage.module.abstract()["pixel_decoder"], trained["pixel_decoder"]
    assert trained.keys() == whole.keys()
    assert trained["transformer"].keys() == whole["transformer"].keys() - {POSITIONS}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec__decoder__kind": "sd3"}, r"sd3 paints latents; set codec\.autoencoder\.path"),
        (
            {**LATENT, "codec__decoder__sd3__position_side": 1},
            "position_side=1, but a picture may be 2 tokens long; set it to at least 2",
        ),
        ({**LATENT, "codec__decoder__sd3__dual_depth": 6}, "dual_depth=6 of depth=6 blocks"),
    ],
    ids=["pixels", "places", "dual"],
)
def test_what_does_not_fit_is_named_with_the_fix(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        build_codec(tiny_config(**changes))
    assert "\n" not in str(error.value)
