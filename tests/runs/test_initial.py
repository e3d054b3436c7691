"""What a stage starts from where its configuration names released weights."""

from __future__ import annotations

import dataclasses
import functools
import operator

import chex
import jax
import numpy as np
import pytest

from tests.families.documents import lively
from tests.models.diffusers_folder import SMALL
from tests.tiny import tiny_config
from unicom_jax.config import ConfigError
from unicom_jax.core.module import jit_once, map_specs
from unicom_jax.families.build import (
    build_autoencoder,
    build_codec,
    build_encoder,
    build_unified,
)
from unicom_jax.interop.folders import write_model
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.runs.initial import initial_params
from unicom_jax.runs.released import build_stage, sources_of

SEED = 3


def on_device(specs):
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return map_specs(lambda spec: device, specs)


def at(tree, path):
    return functools.reduce(operator.getitem, path.split("/"), tree)


def start(config, stage, *parts):
    """The weights that a stage starts from, and these parts of its random initialisation."""
    module = build_stage(config, stage)
    params = initial_params(module.specs(), sources_of(config, stage), SEED, on_device)
    return params, by_chance(module, *parts) if parts else {}


@functools.cache
def by_chance(module, *parts):
    """By path. Weights that are not asked for are not compiled."""

    def random(key):
        params = module.init(key)
        return {part: at(params, part) for part in parts}

    return jit_once(random)(jax.random.key(SEED))


def write(folder, layout, module, **changes):
    """A folder with `module`, changed; its weights."""
    module = dataclasses.replace(module, **changes)
    params = lively(module)
    write_model(folder, LAYOUTS[layout], module, params)
    return params


def test_without_a_folder_everything_is_chance():
    config = tiny_config()
    params, chance = start(config, "pretrain", *build_unified(config).specs())
    chex.assert_trees_all_equal(params, chance, strict=True)


def test_a_part_that_is_given_is_given_whole_unless_some_of_it_is_named_as_random():
    module = build_encoder(tiny_config())
    weights = lively(module)
    given = {"vision": {k: v for k, v in weights["vision"].items() if k != "embedding"}}
    with pytest.raises(ConfigError, match="vision starts from weights without embedding/"):
        initial_params(module.specs(), [], SEED, on_device, given=given)
    fresh = [("vision", "embedding")]
    found = initial_params(module.specs(), [], SEED, on_device, given=given, fresh=fresh)
    random = by_chance(module, "text", "vision/embedding")
    vision = {**given["vision"], "embedding": random["vision/embedding"]}
    chex.assert_trees_all_equal(found["vision"], vision, strict=True)
    chex.assert_trees_all_equal(found["text"], random["text"], strict=True)


def test_the_image_tower_comes_from_its_folder_and_the_rest_by_chance(tmp_path):
    config = tiny_config(encoder__init_from=str(tmp_path / "siglip"))
    given = write(tmp_path / "siglip", "siglip", build_encoder(config).vision)
    others = ("text", "logit_scale", "logit_bias")
    params, chance = start(config, "encoder", *others)
    chex.assert_trees_all_equal(params["vision"], given, strict=True)
    for part in others:
        chex.assert_trees_all_equal(params[part], chance[part], strict=True)


def test_both_towers_come_where_the_text_tower_fits(tmp_path):
    config = tiny_config(encoder__init_from=str(tmp_path / "s"), encoder__pixel_weight=0.1)
    model = dataclasses.replace(build_encoder(config), pixel_head=False)
    given = write(tmp_path / "s", "siglip", model)
    params, chance = start(config, "encoder", "pixels")
    chex.assert_trees_all_equal({part: params[part] for part in given}, given, strict=True)
    chex.assert_trees_all_equal(params["pixels"], chance["pixels"], strict=True)


def test_of_both_towers_only_the_image_tower_comes_where_the_text_tower_is_another(tmp_path):
    config = tiny_config(encoder__init_from=str(tmp_path / "s"))
    model = build_encoder(config)
    text = dataclasses.replace(model.text, vocab_size=77)
    given = write(tmp_path / "s", "siglip", model, text=text)
    params, chance = start(config, "encoder", "text")
    chex.assert_trees_all_equal(params["vision"], given["vision"], strict=True)
    chex.assert_trees_all_equal(params["text"], chance["text"], strict=True)


def test_the_language_model_becomes_the_transformer(tmp_path):
    config = tiny_config(
        unified__init_from=str(tmp_path / "qwen"), unified__transformer__embedding_std=0.3
    )
    given = write(tmp_path / "qwen", "qwen", build_unified(config).transformer)
    params, chance = start(config, "pretrain", "head", "embedding")
    chex.assert_trees_all_equal(params["transformer"], given, strict=True)
    for part in ("head", "embedding"):
        chex.assert_trees_all_equal(params[part], chance[part], strict=True)


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_of_the_vocabulary_start_as_the_mean_of_the_others(tmp_path, tied):
    config = tiny_config(
        unified__init_from=str(tmp_path / "qwen"), unified__transformer__tied_head=tied
    )
    given = write(tmp_path / "qwen", "qwen", build_unified(config).transformer, vocab_size=300)
    transformer = start(config, "pretrain")[0]["transformer"]
    table, known = transformer["embedding"]["table"], given["embedding"]["table"]
    assert table.shape[0] == 400
    np.testing.assert_array_equal(table[:300], known)
    np.testing.assert_allclose(table[300:], np.tile(np.mean(known, 0), (100, 1)), atol=1e-6)
    if not tied:
        kernel, known = transformer["head"]["kernel"], given["head"]["kernel"]
        np.testing.assert_array_equal(kernel[:, :300], known)
        np.testing.assert_allclose(kernel[:, 350], np.mean(known, 1), atol=1e-6)


def test_a_codec_that_compresses_nothing_keeps_its_empty_parts(tmp_path):
    config = tiny_config(codec__init_from=str(tmp_path), codec__compressor="identity")
    for part in ("compressor", "decompressor"):
        write(tmp_path / part, "projection", getattr(build_codec(config), part))
    params, _ = start(config, "codec")
    chex.assert_trees_all_equal_structs(params, build_codec(config).abstract())


def test_both_projections_come_from_their_folders(tmp_path):
    config = tiny_config(codec__init_from=str(tmp_path))
    codec = build_codec(config)
    parts = ("compressor", "decompressor")
    given = {part: write(tmp_path / part, "projection", getattr(codec, part)) for part in parts}
    params, chance = start(config, "codec", "pixel_decoder")
    for part in parts:
        chex.assert_trees_all_equal(params[part], given[part], strict=True)
    chex.assert_trees_all_equal(params["pixel_decoder"], chance["pixel_decoder"], strict=True)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"width": 48}, "set --config.unified.transformer.width=48"),
        ({"depth": 5}, "set --config.unified.transformer.depth=5"),
        ({"rope_theta": 1e6}, "set --config.unified.transformer.rope_theta=1000000.0"),
        ({"norm_eps": 1e-5}, "set --config.unified.transformer.norm_eps=1e-05"),
        (
            {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_length": 64},
            "set --config.unified.transformer.rope_factor=4.0 "
            "--config.unified.transformer.rope_length=64 "
            "--config.unified.transformer.rope_scaling=yarn",
        ),
        ({"tied_head": False}, "set --config.unified.transformer.tied_head=False"),
        ({"vocab_size": 500}, "set --config.data.padded_vocab_size=500"),
    ],
)
def test_other_sizes_of_the_language_model_name_the_key(tmp_path, changes, fix):
    config = tiny_config(unified__init_from=str(tmp_path / "qwen"))
    write(tmp_path / "qwen", "qwen", build_unified(config).transformer, **changes)
    with pytest.raises(ConfigError, match=fix) as error:
        sources_of(config, "pretrain")
    assert f"unified.init_from={tmp_path / 'qwen'}" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"width": 48}, "set --config.encoder.vision.width=48"),
        ({"patch_size": 8}, "set --config.data.patch=8"),
        ({"position_rows": 4, "position_cols": 4}, "set --config.data.image_size=64"),
        ({"naflex": True}, "set --config.encoder.naflex=True"),
    ],
)
def test_other_sizes_of_the_encoder_name_the_key(tmp_path, changes, fix):
    config = tiny_config(encoder__init_from=str(tmp_path / "siglip"))
    write(tmp_path / "siglip", "siglip", build_encoder(config).vision, **changes)
    with pytest.raises(ConfigError, match=fix):
        sources_of(config, "encoder")


def test_a_text_tower_is_no_encoder(tmp_path):
    config = tiny_config(encoder__init_from=str(tmp_path / "siglip"))
    write(tmp_path / "siglip", "siglip", build_encoder(config).text)
    with pytest.raises(ConfigError, match="only a text tower; give a folder with an image tower"):
        sources_of(config, "encoder")


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"out_dim": 4}, "set --config.codec.latent_dim=4"),
        ({"in_dim": 64}, "set --config.encoder.vision.width=64"),
        ({"heads": 2}, "set --config.codec.compressor_heads=2"),
    ],
)
def test_other_sizes_of_a_projection_name_the_key(tmp_path, changes, fix):
    config = tiny_config(codec__init_from=str(tmp_path))
    write(tmp_path / "compressor", "projection", build_codec(config).compressor, **changes)
    with pytest.raises(ConfigError, match=fix):
        sources_of(config, "codec")


def test_an_autoencoder_comes_whole_from_its_folder(tmp_path):
    config = tiny_config(autoencoder__init_from=str(tmp_path))
    module = build_autoencoder(config)
    given = write(tmp_path, "autoencoder", module)
    sources = sources_of(config, "autoencoder")
    params = initial_params(module.specs(), sources, SEED, on_device)
    chex.assert_trees_all_equal(params, given, strict=True)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"resnets": 2, "groups": 8}, "set --config.autoencoder.resnets=2 .*norm_groups=8"),
        ({"side": 2}, "set --config.data.patch=4"),
    ],
)
def test_another_autoencoder_names_the_key(tmp_path, changes, fix):
    config = tiny_config(autoencoder__init_from=str(tmp_path))
    write(tmp_path, "autoencoder", build_autoencoder(config), **changes)
    with pytest.raises(ConfigError, match=fix):
        sources_of(config, "autoencoder")


def test_an_autoencoder_without_statistics_normalises_as_its_scale_and_shift_say(tmp_path):
    config = tiny_config(autoencoder__init_from=str(tmp_path), autoencoder__latent_channels=4)
    config.autoencoder.quant_conv = SMALL.quant_conv
    given = write(tmp_path, "autoencoder", SMALL)
    module, sources = build_autoencoder(config), sources_of(config, "autoencoder")
    params = initial_params(module.specs(), sources, SEED, on_device)
    statistics = params.pop("statistics")
    chex.assert_trees_all_equal(params, given, strict=True)
    raw = np.random.default_rng(0).standard_normal((3, module.packed_channels), np.float32)
    ours = module.normalise({"statistics": statistics}, raw)
    np.testing.assert_allclose(ours, SMALL.normalise({}, raw), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "fix"),
    [
        ({"resnets": 2}, "set --config.autoencoder.resnets=2"),
        ({"quant_conv": True}, "set --config.autoencoder.quant_conv=True"),
        ({"scale": 1000.0}, "scaling_factor=1000.0, which would need a variance below 0"),
    ],
)
def test_another_autoencoder_without_statistics_names_the_key(tmp_path, changes, fix):
    config = tiny_config(autoencoder__init_from=str(tmp_path), autoencoder__latent_channels=4)
    config.autoencoder.quant_conv = SMALL.quant_conv
    write(tmp_path, "autoencoder", SMALL, **changes)
    with pytest.raises(ConfigError, match=fix):
        sources_of(config, "autoencoder")


def painter_config(folder, kind):
    return tiny_config(
        codec__autoencoder__path="vae",
        codec__autoencoder__facts={"sizes": dataclasses.asdict(SMALL), "canvas": (2, 2)},
        codec__decoder__kind=kind,
        codec__decoder__flux__channels=256,
        codec__decoder__sd3__position_side=4,
        codec__decoder__init_from=str(folder),
    )


@pytest.mark.parametrize("kind", ["flux", "sd3"])
def test_a_released_transformer_becomes_that_of_the_decoder(tmp_path, kind):
    config = painter_config(tmp_path, kind)
    decoder = build_codec(config).pixel_decoder
    given = write(tmp_path, kind, decoder.transformer)
    others = ("pixel_decoder/projector", "compressor")
    params, chance = start(config, "codec", *others)
    chex.assert_trees_all_equal(params["pixel_decoder"]["transformer"], given, strict=True)
    for part in others:
        chex.assert_trees_all_equal(at(params, part), chance[part], strict=True)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("flux", {"single_depth": 7}, "set --config.codec.decoder.flux.single_depth=7"),
        ("sd3", {"dual_depth": 3}, "set --config.codec.decoder.sd3.dual_depth=3"),
        ("sd3", {"latent_channels": 8}, "has latent_channels=8, the model here 4, and no key"),
    ],
)
def test_other_sizes_of_a_released_transformer_name_the_key(tmp_path, kind, change, words):
    config = painter_config(tmp_path, kind)
    write(tmp_path, kind, build_codec(config).pixel_decoder.transformer, **change)
    with pytest.raises(ConfigError, match=words):
        sources_of(config, "codec")


def test_a_decoder_of_our_own_has_no_released_weights(tmp_path):
    config = tiny_config(codec__decoder__init_from=str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"codec\.decoder\.init_from=.* .*set --config.codec.decoder.kind=flux"
    ):
        sources_of(config, "codec")


def test_a_decoder_starts_from_a_folder_and_not_from_another_run():
    config = tiny_config(codec__decoder__init_from="runs/base:codec")
    with pytest.raises(ConfigError, match="codec.decoder.init_from=runs/base:codec: only decoders"):
        sources_of(config, "codec")
