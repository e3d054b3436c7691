"""Settings that would only fail under jit, or at the very end, are refused before training."""

from __future__ import annotations

import pytest

from tests.tiny import tiny_config
from unicom_jax.config import ConfigError
from unicom_jax.families.build import build_codec, build_encoder
from unicom_jax.training.settings import check_on_mesh, check_settings, copies_on_mesh


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("compute_dtype", "float8", "compute_dtype='float8' is unknown; choose float32 or bfl"),
        ("sample__sampler", "huen", "sample.sampler='huen' is unknown; choose euler or heun"),
        ("codec__time", "normal", "codec.time='normal' is unknown; choose uniform or logit_n"),
        ("unified__time", "normal", "unified.time='normal' is unknown"),
        ("codec__decoder__prediction", "noise", "codec.decoder.prediction='noise' is unknown; ch"),
        ("unified__prediction", "noise", "unified.prediction='noise' is unknown; choose data or"),
        ("codec__time_shift", 0.0, "codec.time_shift=0.0 leaves only one time"),
        ("pretrain__log_every", 0, "pretrain.log_every=0: give at least 1"),
        ("pretrain__keep", 0, "pretrain.keep=0: give at least 1"),
        (
            "pretrain__spike_factor",
            0.5,
            "pretrain.spike_factor=0.5 would skip usual steps; give",
        ),
        (
            "pretrain__keep_best",
            2,
            "keep_best=2 needs a held-out loss at every checkpoint; set",
        ),
        ("pretrain__max_rollbacks", -1, "pretrain.max_rollbacks=-1: give at least 0"),
        ("pretrain__accumulate", 3, "batch_size=4 cannot be split into pretrain.accumulate=3 eq"),
        ("unified__z_loss", -1e-4, "unified.z_loss=-0.0001 would drive the logits apart"),
        ("pretrain__ema_decay", 1.0, "pretrain.ema_decay=1.0: give a decay below 1"),
        ("pretrain__ema_warmup", True, "pretrain.ema_warmup=True needs an average; set"),
        ("codec__perceptual_layers", (0.5, 2), "codec.perceptual_layers=.0.5, 2. should be sha"),
        ("codec__perceptual_layers", (), "codec.perceptual_layers=.. should be shares"),
        ("codec__perceptual_time", -1.0, "codec.perceptual_time=-1.0 would weight pictures near"),
        ("pretrain__clip_norm", 0.0, "pretrain.clip_norm=0.0 would make every update zero"),
    ],
)
def test_a_setting_that_cannot_be_is_named_with_what_it_may_be(key, value, message):
    with pytest.raises(ConfigError, match=message) as error:
        check_settings(tiny_config(**{key: value}), ("codec", "pretrain"))
    assert "\n" not in str(error.value)


def test_a_decay_that_takes_no_steps_is_refused_where_the_schedule_has_one():
    config = tiny_config(pretrain__decay_share=0.0)
    check_settings(config, ("pretrain",))
    config.pretrain.schedule = "wsd"
    with pytest.raises(ConfigError, match="pretrain.decay_share=0.0: give the share of the steps"):
        check_settings(config, ("pretrain",))


def test_rows_that_do_not_divide_over_the_context_axis_are_refused():
    config = tiny_config(pretrain__sequence_length=90)
    check_on_mesh("pretrain", config, {"context": 2})
    check_on_mesh("codec", config, {"context": 4})  # pictures are not split
    with pytest.raises(ConfigError, match="pretrain.sequence_length=90 .* over context=4 of the"):
        check_on_mesh("pretrain", config, {"context": 4})


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("encoder", "encoder.vision.heads"),
        ("encoder", "encoder.text.heads"),
        ("codec", "codec.decoder.heads"),
        ("pretrain", "unified.transformer.heads"),
        ("pretrain", "unified.flow_decoder.heads"),
    ],
)
def test_heads_that_a_tensor_axis_does_not_divide_are_refused(stage, key):
    config = tiny_config(unified__pathway="query")
    for part in (config.encoder.vision, config.encoder.text, config.codec.decoder):
        part.heads = 8
    config.unified.transformer.heads = config.unified.flow_decoder.heads = 8
    check_on_mesh(stage, config, {"tensor": 8})
    group, part, _ = key.split(".")
    config[group][part].heads = 28
    line = f"{key}=28 does not divide over tensor=8 of the mesh, .* set tensor=4 there"
    with pytest.raises(ConfigError, match=line):
        check_on_mesh(stage, config, {"tensor": 8})
    check_on_mesh(stage, config, {"tensor": 4})


def test_what_a_tensor_axis_keeps_whole_is_named_with_its_key():
    config = tiny_config(data__vocab_size=401)
    config.unified.transformer.heads = 8
    lines = copies_on_mesh("pretrain", config, {"tensor": 8})
    keys = ("encoder.vision.heads=2", "unified.transformer.kv_heads=1", "data.vocab_size=401")
    assert [line.split(" does")[0] for line in lines] == [f"pretrain: {key}" for key in keys]
    assert copies_on_mesh("pretrain", config, {"tensor": 1}) == []
    assert len(copies_on_mesh("codec", config, {"tensor": 8})) == 1  # it reads no words


def test_only_the_stages_that_run_are_looked_at():
    check_settings(tiny_config(sft__log_every=0), ("encoder", "codec", "pretrain"))


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (build_encoder, "encoder__vision__attention_backend"),
        (build_codec, "codec__decoder__attention_backend"),
    ],
)
def test_an_attention_backend_is_checked_where_the_model_is_declared(build, key):
    with pytest.raises(ValueError, match="'flash'; use one of") as error:
        build(tiny_config(**{key: "flash"})).specs()
    assert "\n" not in str(error.value)
