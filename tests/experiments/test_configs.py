"""The configurations that ship: they build, have the public sizes, and their documents fit."""

from __future__ import annotations

import functools
import json
import shlex
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

from data_pipelines import batches
from data_pipelines import build as pipelines
from data_pipelines.examples import Edit, Example, Question
from data_pipelines.images import aspect_buckets
from data_pipelines.sources.records import write_records
from tests.data.samples import tokenizer
from unicom_jax.config import KEYS, UNIFIED_STAGES, load_config, resolve, values
from unicom_jax.config.check import check_settings
from unicom_jax.core.flow import latent_shift
from unicom_jax.families.build import build_codec, build_encoder, build_space, build_unified
from unicom_jax.interop.layouts.autoencoder import describe
from unicom_jax.models.autoencoder import flux_autoencoder
from unicom_jax.models.flux import FLUX_SIZES
from unicom_jax.models.transformer import TRANSFORMER_SIZES
from unicom_jax.models.vision_encoder import VisionEncoder
from unicom_jax.parallel.mesh import AXES, parse_mesh
from unicom_jax.runs.autoencoder import autoencoder_facts
from unicom_jax.runs.stages import STAGES
from unicom_jax.training.optimizers import make_optimizer
from unicom_jax.training.stages import LOSSES
from unicom_jax.training.state import check_freeze, split

FOLDER = Path(__file__).resolve().parents[2] / "experiments"
CONFIGS = {
    path.stem: str(path)
    for path in sorted(FOLDER.glob("*.py"))
    if "def get_config" in path.read_text(encoding="utf-8")
}
RUNS = sorted(CONFIGS.keys() - {"base"})  # base only lists the keys
SCENES = ("quickstart", "cheers_quick", "scenes_base", "cheers_scenes", "scenes_large")


@functools.cache
def config_of(name):
    return load_config(CONFIGS[name])


@functools.cache
def started(name):
    return adopt_flux(load_config(CONFIGS[name]))


def adopt_flux(config):
    """The configuration as a run leaves it that found FLUX's autoencoder where the key says."""
    if config.codec.autoencoder.path:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.json"
            path.write_text(json.dumps(describe(flux_autoencoder())))
            config.codec.autoencoder.facts = autoencoder_facts(config, path.parent)
    return config


def stage_of(name, config):
    own = {"tokenizer": tokenizer()} if STAGES[name].samples else {}
    return LOSSES[STAGES[name].loss](name, config, list, **own)


# --- all of them


def test_the_configurations_that_the_documentation_names_are_there():
    assert {"base", "quickstart", "scenes_base", "scenes_large", "openmoji", "unicom_7b"} <= set(
        CONFIGS
    )


@pytest.mark.parametrize("name", RUNS)
def test_a_configuration_has_the_declared_keys(name):
    assert {key for key, _ in values(config_of(name))} == set(KEYS)


@pytest.mark.parametrize("name", RUNS)
def test_its_modules_are_declared_without_allocating_a_weight(name):
    config = started(name)
    for module in (build_encoder(config), build_codec(config), build_unified(config)):
        leaves = jax.tree.leaves(module.abstract())
        assert leaves and all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


@pytest.mark.parametrize("name", RUNS)
def test_its_stages_come_in_order(name):
    stages = config_of(name).stages
    assert stages == tuple(stage for stage in STAGES if stage in stages)


@pytest.mark.parametrize("name", RUNS)
def test_every_stage_has_an_optimizer_whose_rate_rises_to_its_peak(name):
    config = started(name)
    for stage_name in config.stages:
        settings, stage = config[stage_name], stage_of(stage_name, config)
        check_freeze(stage.module.specs(), stage.freeze)
        trained, _ = split(stage.module.specs(), stage.freeze)
        optimizer, schedule = make_optimizer(settings, trained, settings.steps)
        weights, _ = split(stage.module.abstract(), stage.freeze)
        jax.eval_shape(optimizer.init, weights)
        assert float(schedule(0)) < settings.learning_rate
        peak = float(schedule(settings.warmup_steps))
        assert peak == pytest.approx(settings.learning_rate, rel=1e-5)
        assert settings.warmup_steps < settings.steps


@pytest.mark.parametrize("name", RUNS)
def test_every_mixture_sums_to_one_and_rows_make_whole_windows(name):
    config = config_of(name)
    for stage in (stage for stage in config.stages if stage in UNIFIED_STAGES):
        assert sum(config[stage].mixture.values()) == pytest.approx(1.0)
        assert config[stage].batch_size % config[stage].window_rows == 0


@pytest.mark.parametrize("name", SCENES)
def test_the_rows_of_a_scenes_configuration_hold_its_documents(name, monkeypatch):
    monkeypatch.setattr(pipelines, "TOKENIZER_EXAMPLES", 200)
    config = config_of(name).copy_and_resolve_references()
    config.data.update({"workers": 0, "threads": 1})
    tokenizer = pipelines.load_or_train_tokenizer(config, None)
    for stage in (stage for stage in config.stages if stage in UNIFIED_STAGES):
        # Making the loader looks at 384 documents; an overlong one raises there already.
        stream = batches.unified_loader(config, stage, tokenizer)._make.stream
        lengths = [len(stream.document(index)[0]) for index in range(200)]
        assert 16 < max(lengths) <= config[stage].sequence_length


# --- real pictures


def drawing(index):
    picture = np.full((72, 72, 3), index, np.uint8)
    tags = ", ".join(f"tag {index} {place}" for place in range(8))
    return Example(
        key=f"openmoji/{index}",
        image=picture,
        captions=(
            f"thing {index}",
            f"thing {index}; a drawing from objects, {index}; about {tags}",
        ),
        questions=(Question("What is this?", f"thing {index}", "name"),),
        edits=(Edit("make the skin tone dark", picture, "skin_tone"),),
    )


def test_the_openmoji_configuration_reads_what_its_source_offers(tmp_path):
    config = config_of("openmoji").copy_and_resolve_references()
    config.data.source.path = str(tmp_path)
    config.data.update({"threads": 1})
    write_records(tmp_path / "train", [drawing(index) for index in range(40)], 1)
    tokenizer = pipelines.load_or_train_tokenizer(config, None)
    loader = batches.unified_loader(config, "pretrain", tokenizer)
    next(loader)
    assert loader.counts["documents"] > 8
    assert loader.counts["broken"] == loader.counts["overlong"] == 0


# --- the paper's model

LANGUAGE_MODEL = 7_615_616_512  # Qwen2.5-7B
COMPRESSOR, DECOMPRESSOR = 4_091_328, 9_599_872  # 1152 -> 64 -> 1152 with 18 heads
# Table of sub-stages: learning rate, schedule, weight decay, warm-up, steps, diff and text weight,
# and shares of text-only, text-to-image, image-to-text, image-text-image.
RECIPE = {
    "align": (2e-5, "cosine", 0.0, 600, 20_000, (0, 1), (0.20, 0.00, 0.80, 0.00)),
    "pretrain": (1e-4, "constant", 0.01, 5000, 115_000, (5, 1), (0.25, 0.45, 0.15, 0.15)),
    "continue": (1e-4, "constant", 0.01, 5000, 60_000, (5, 1), (0.20, 0.40, 0.20, 0.20)),
    "sft": (1e-5, "constant", 0.01, 100, 7000, (5, 1), (0.10, 0.20, 0.40, 0.30)),
}
KINDS = (
    ("text",),
    ("text_to_image",),
    ("image_to_text", "visual_qa"),
    ("edit", "several_images", "think_then_draw", "interleaved"),
)


@pytest.fixture(scope="module")
def paper():
    return started("unicom_7b")


def test_the_language_model_is_qwen_2_5_7b(paper):
    transformer = build_unified(paper).transformer
    how = {"remat": transformer.remat, "attention_backend": transformer.attention_backend}
    assert transformer == TRANSFORMER_SIZES["qwen2.5-7b"](**how)
    assert transformer.param_count() == LANGUAGE_MODEL


def test_compressor_and_decompressor_have_the_public_counts(paper):
    codec = build_codec(paper)
    assert codec.compressor.param_count() == COMPRESSOR
    assert codec.decompressor.param_count() == DECOMPRESSOR


def test_the_pixel_decoder_is_flux_1_dev_over_its_autoencoder(paper):
    decoder = build_codec(paper).pixel_decoder
    how = {"remat": "full", "attention_backend": "fused"}
    assert decoder.transformer == FLUX_SIZES["flux.1-dev"](**how)
    assert decoder.transformer.param_count() == 11_901_408_320
    assert build_space(paper).autoencoder == flux_autoencoder()
    assert decoder.compute_dtype == "bfloat16"


def test_a_pixel_decoder_of_pixels_stays_possible(paper):
    config = paper.copy_and_resolve_references()
    config.codec.decoder.kind = "dit"
    config.codec.autoencoder.path = ""
    decoder = build_codec(config).pixel_decoder
    assert (decoder.channels, decoder.width, decoder.depth) == (768, 1664, 40)


def test_the_encoder_is_siglip_2_so400m_naflex(paper):
    vision = build_encoder(paper).vision
    assert vision == VisionEncoder.named("so400m", attention_backend="fused")


def test_the_encoder_has_as_many_weights_as_transformers_siglip_2(paper):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.Siglip2VisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16,
        patch_size=16, num_patches=256,
    )  # fmt: skip
    with torch.device("meta"):
        model = transformers.Siglip2VisionModel(config)
    public = sum(weight.numel() for weight in model.parameters())
    assert build_encoder(paper).vision.param_count() == public


@pytest.mark.parametrize("stage", RECIPE)
def test_a_stage_follows_the_recipe_table(paper, stage):
    settings = paper[stage]
    rate, schedule, decay, warmup, steps, weights, shares = RECIPE[stage]
    assert (settings.learning_rate, settings.schedule) == (rate, schedule)
    assert (settings.weight_decay, settings.warmup_steps, settings.steps) == (decay, warmup, steps)
    assert (settings.flow_weight, settings.text_weight) == weights
    optimizer = (settings.optimizer, settings.b1, settings.b2, settings.eps, settings.clip_norm)
    assert optimizer == ("adamw", 0.9, 0.95, 1e-6, 1.0)
    mixed = [sum(settings.mixture[task] for task in tasks) for tasks in KINDS]
    assert mixed == pytest.approx(shares)


def test_align_trains_on_words_alone(paper):
    assert set(stage_of("align", paper).weights) == {"text"}


def test_the_codec_learns_from_33_aspect_ratios_of_at_most_1024_tokens(paper):
    data, policy = paper.data, pipelines.image_policy(paper)
    buckets = aspect_buckets(data.image_size, data.patch, data.bucket_step)
    printed = aspect_buckets(1024, 16, 64)  # what the paper says, at twice the size
    assert len(buckets) == len(printed) == 33
    assert [2 * max(size) for size in buckets] == [max(size) for size in printed]
    assert policy.max_patches(data.patch) == 1024
    assert latent_shift(1024, paper.codec.latent_dim) == 4.0
    assert (paper.codec.steps, paper.codec.batch_size) == (50_000, 256)


def test_a_row_holds_the_longest_document_of_three_drawn_pictures(paper):
    # Draw (clean and noisy), ask, edit (noisy), each with up to 256 tokens of words a turn.
    longest = 3 * 1024 + 3 * 256
    assert all(paper[stage].sequence_length >= longest for stage in RECIPE)


def test_the_template_is_qwens_chat_form(paper):
    data = paper.data
    turn = f"{data.prompt_open}Hi{data.prompt_close}Hello{data.response_close}"
    assert turn == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>"


def test_weights_are_sharded_over_32_devices_of_a_pod_in_whole_tiles(paper):
    """A tile of bf16 has 16 rows; in parts of them gradients would be all-reduced."""
    assert dict(zip(AXES, parse_mesh(paper.mesh, 256), strict=True)) == {
        "slice": 1, "data": 8, "fsdp": 32, "context": 1, "tensor": 1,
    }  # fmt: skip
    assert paper.unified.transformer.width // 32 % 16 == 0


def test_the_batches_divide_over_256_devices(paper):
    assert all(paper[stage].batch_size % 256 == 0 for stage in paper.stages)


# --- what the documentation says

DOCS = Path(__file__).resolve().parents[2] / "docs"


def documented_commands():
    text = (DOCS / "configurations.md").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("unicom train --config=")]
    return [shlex.split(line, comments=True)[2:] for line in lines]


@pytest.mark.parametrize("flags", documented_commands(), ids=lambda flags: flags[1][10:])
def test_a_documented_command_names_a_run_that_can_be_built(flags):
    file, *overrides = (flag for flag in flags if flag.startswith("--config"))
    file = FOLDER.parent / file.removeprefix("--config=")
    config = adopt_flux(resolve(str(file), overrides))
    check_settings(config, config.stages)
    pipelines.image_policy(config).target_size(64, 64, config.data.patch * config.codec.pool)
    for stage in config.stages:
        stage_of(stage, config).module.abstract()
        mixture = config[stage].get("mixture", {"pictures": 1.0})
        assert sum(mixture.values()) > 0, f"{stage} has no task"
