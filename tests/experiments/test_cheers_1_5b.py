"""The released sizes of Cheers and its recipe (arXiv 2603.12793 and its published code).

Counts are in millions of weights.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.build import sequence_config, stage_packing
from data_pipelines.sequences.sequence import build_document
from data_pipelines.sequences.tasks import TASKS as FUNCTIONS
from experiments.cheers_1_5b import SHARES
from tests.data.samples import SMALL, example, tokenizer
from unicom_jax.config.check import check_settings
from unicom_jax.config.files import load_config
from unicom_jax.core.module import iter_specs
from unicom_jax.families.build import build_autoencoder, build_unified
from unicom_jax.training.stages import LOSSES

FILE = Path(__file__).resolve().parents[2] / "experiments" / "cheers_1_5b.py"
COUNTS = {
    "transformer/embedding": 233.4,
    "transformer/blocks": 1310.3,
    "decoder": 49.62,
    "vision": 428.77,
    "vision/head": 15.24,  # pooling, which nothing reads
    "projector": 28.32,
    "head/semantics": 347.7,
    "head/details": 83.45,
    "head/gate": 1.33,
}
# learning rate, schedule, samples a step, steps, warm-up
RECIPE = {
    "align": (1e-4, "constant", 512, 30_000, 600),
    "pretrain": (1e-4, "constant", 512, 60_000, 1200),
    "continue": (4e-5, "constant", 512, 65_000, 1300),
    "sft": (2e-5, "cosine", 128, 30_000, 600),
}
TASKS = (("image_to_text", "visual_qa"), ("text_to_image",), ("text",))


@pytest.fixture(scope="module")
def config():
    return load_config(FILE)


@pytest.fixture(scope="module")
def model(config):
    return build_unified(config)


def millions(specs) -> float:
    return sum(spec.size for _, spec in iter_specs(specs)) / 1e6


def at(specs, path: str):
    for name in path.split("/"):
        specs = specs[name]
    return specs


@pytest.mark.parametrize("path", COUNTS)
def test_a_module_has_the_released_number_of_weights(model, path):
    digits = len(str(COUNTS[path]).partition(".")[2])
    assert round(millions(at(model.specs(), path)), digits) == COUNTS[path]


def test_the_autoencoder_and_the_times_have_their_numbers_of_weights(config, model):
    frozen, head = build_autoencoder(config).specs(), at(model.specs(), "head")
    encoder = millions(frozen["encoder"]) + millions(frozen["quant_conv"])
    decoder = millions(frozen["decoder"]) + millions(frozen["post_quant_conv"])
    assert (round(encoder, 2), round(decoder, 2)) == (34.43, 49.62)
    times = millions(head["semantics_time"]) + millions(head["details_time"])
    assert round(times, 2) == 4.38


def test_the_whole_has_2571_million_weights(config, model):
    frozen = build_autoencoder(config)
    assert round((model.param_count() + frozen.param_count()) / 1e6, 1) == 2571.3


def test_a_picture_of_512_pixels_takes_256_slots_of_four_tokens(config, model):
    check_settings(config, config.stages)
    assert sequence_config(config).unit == 2
    assert model.images.shape_of(256) == (1024, 128)
    head = model.images.head
    sizes = [(s.block.attention.head_dim, s.heads, s.depth) for s in (head.semantics, head.details)]
    assert sizes == [(128, 12, 7), (72, 16, 3)]
    assert head.details.out_dim == model.images.tokenizer.painter.width == 128
    assert model.images.codec.darkest == 0.0


@pytest.mark.parametrize("stage", RECIPE)
def test_a_stage_follows_the_recipe(config, stage):
    settings = config[stage]
    rate, schedule, samples, steps, warmup = RECIPE[stage]
    assert (settings.learning_rate, settings.schedule) == (rate, schedule)
    assert settings.batch_size * settings.images_per_row == samples
    assert (settings.steps, settings.warmup_steps) == (steps, warmup)
    assert (settings.flow_weight, settings.text_weight, settings.cfg_dropout) == (1.0, 1.0, 0.2)
    optimizer = (settings.optimizer, settings.b1, settings.b2, settings.eps, settings.clip_norm)
    assert optimizer == ("adamw", 0.9, 0.95, 1e-8, 1.0) and settings.weight_decay == 0
    mixed = [sum(settings.mixture[task] for task in tasks) for tasks in TASKS]
    assert mixed == pytest.approx(SHARES[stage])
    assert sum(settings.mixture.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("stage", RECIPE)
def test_two_pictures_fit_a_row_whatever_its_documents_do_with_them(config, stage):
    _, images, draws, views = stage_packing(config, stage).room
    assert (images, draws, views) == (2, 2, 2)
    for task, weight in config[stage].mixture.items():
        if weight:
            segments = FUNCTIONS[task].function([example()], np.random.default_rng(0))
            size = build_document(segments, tokenizer(), SMALL).size
            assert size[3] == size[1] <= 1, task


@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        ("align", {"projector", "head"}),
        ("pretrain", {"transformer", "decoder", "vision", "projector", "head"}),
    ],
)
def test_the_first_stage_trains_projector_and_head_and_later_ones_all(config, model, stage, parts):
    held = [re.compile(pattern) for pattern in LOSSES["unified"](stage, config, list).freeze]
    paths = ["/".join(path) for path, _ in iter_specs(model.specs())]
    assert {p.split("/")[0] for p in paths if not any(h.match(p) for h in held)} == parts
