"""The released sizes of UAE (arXiv 2509.09666 and its published code)."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_pipelines.build import sequence_config
from unicom_jax.config.check import check_settings
from unicom_jax.config.files import load_config
from unicom_jax.core.module import iter_specs
from unicom_jax.families.build import build_autoencoder, build_unified
from unicom_jax.models.mmdit import MMDIT_SIZES, POSITIONS
from unicom_jax.models.qwen_vl import QWEN_VL_SIZES
from unicom_jax.parallel.plan.topology import parse_topology
from unicom_jax.planning.estimate import estimate_stage
from unicom_jax.runs.sizes import is_same

FILE = Path(__file__).resolve().parents[2] / "experiments" / "uae_3b.py"
# As the Hub counts them in the files of Qwen/Qwen2.5-VL-3B-Instruct and of
# stabilityai/stable-diffusion-3.5-large: transformer (without its table of places) and vae.
READER, DRAWER, AUTOENCODER = 3_754_622_976, 8_056_627_520, 83_819_683
CONNECTOR = 2048 * 8192 + 8192 + 8192 * 4096 + 4096


@pytest.fixture(scope="module")
def config():
    return load_config(FILE)


@pytest.fixture(scope="module")
def model(config):
    return build_unified(config)


def count(specs) -> int:
    return sum(spec.size for _, spec in iter_specs(specs))


def test_its_settings_are_valid(config):
    check_settings(config, config.stages)


def test_every_module_has_the_released_number_of_weights(config, model):
    specs = model.specs()
    decoder = {**specs["decoder"]["transformer"]}
    del decoder[POSITIONS]
    assert count(specs["vision"]) + count(specs["transformer"]) == READER
    assert count(specs["decoder"]["projector"]) == CONNECTOR == 50_343_936
    assert count(decoder) == DRAWER
    autoencoder = build_autoencoder(config).specs()
    assert count(autoencoder) == AUTOENCODER + count(autoencoder["statistics"])


def test_reader_and_drawer_are_the_released_models(model):
    reader = QWEN_VL_SIZES["qwen2.5-vl-3b"]()
    assert is_same(model.transformer, reader.transformer)
    assert is_same(model.images.vision, reader.vision)
    assert is_same(model.images.decoder.transformer, MMDIT_SIZES["sd3.5-large"]())


def test_a_long_caption_and_its_picture_fit_into_a_row(config):
    sequence = sequence_config(config)
    slots = 1024 // config.data.patch // config.unified.fold
    assert sequence.token_grid(64, 64, None) == (slots, slots)
    assert config.longcap.sequence_length - slots**2 >= 1000


@pytest.mark.parametrize("topology", ["h100:64", "v5p:4x4x4"])
def test_a_step_is_estimated_to_fit(config, topology):
    plan = estimate_stage(config, "longcap", parse_topology(topology))
    assert plan.fits
