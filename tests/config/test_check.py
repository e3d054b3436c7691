"""Settings that would only fail later, or train nonsense in silence, are refused at the start."""

from __future__ import annotations

import re
import sys

import pytest

from experiments import base
from tests.tiny import tiny_config
from unicom_jax.config import ConfigError, apply_overrides
from unicom_jax.config.check import check_settings
from unicom_jax.config.check_tuned import check_tuned
from unicom_jax.config.key import parse
from unicom_jax.config.schema import KEYS
from unicom_jax.families.build import build_codec, build_encoder
from unicom_jax.training.settings import check_on_mesh

REFUSED = """
encoder.save_every=-1
encoder.steps=0
encoder.steps=-3
encoder.learning_rate=-0.001
encoder.learning_rate=1e999
encoder.learning_rate=nan
encoder.warmup_steps=-5
encoder.ema_decay=1.0
encoder.ema_decay=1.5
encoder.ema_decay=-1.0
encoder.batch_size=0
encoder.b1=1.0
encoder.b2=1.5
encoder.eps=0
encoder.weight_decay=-1
encoder.eval_every=-1
encoder.schedule=cosin
encoder.optimizer=adam
encoder.freeze=('(',)
seed=-1
seed=99999999999
seed=1.5
data.threads=0
data.prefetch=0
data.workers=-1
data.cache_mb=-1
data.image_size=0
data.image_size=50
data.patch=0
data.source.size=0
encoder.vision.heads=3
encoder.vision.heads=0
encoder.vision.depth=0
encoder.text.max_length=0
encoder.captions=first
encoder.vision.attention_backend=flash
encoder.vision.remat=maybe
compute_dtype=bf16
encoder.profile_start=-1
wandb_project=mine
encoder.accumulate=3
encoder.max_rollbacks=-1
encoder.keep_every=-1
data.max_unreadable=-1
data.max_unreadable=2
data.scenes.colours=('mauve',)
stages=()
stages=("painter",)
pretrain.sequence_length=0
pretrain.images_per_row=0
pretrain.window_rows=3
pretrain.window_rows=0
pretrain.mixture.text_to_image=-1.0
pretrain.mixture.text_to_image=1e999
pretrain.cfg_dropout=2
pretrain.flow_weight=-1
pretrain.flow_weight=0 pretrain.text_weight=0
pretrain.mixture.text_to_image=0.0 pretrain.mixture.visual_qa=0 pretrain.mixture.edit=0
pretrain.noisy_copies=0
unified.transformer.kv_heads=3
unified.transformer.head_dim=15
unified.transformer.rope_theta=0
unified.transformer.unroll=0
unified.text_chunk=-1
unified.cheers.gate=False
unified.cheers.flow_over=all
unified.pathway=query unified.head.kind=mlp
data.scenes.sizes=((32,),)
data.scenes.sizes=((-32,32),)
data.scenes.sizes=(('32',32),)
data.scenes.sizes=((100000,100000),)
unified.time_shift=-1
unified.pathway=both
codec.latent_dim=0
codec.latent_dim=7
codec.statistics_batches=0
codec.sample_steps=0
codec.latent_noise=-1
codec.pool=2
codec.pool=0
codec.compressor=pool
codec.compressor=mlp codec.compressor_heads=2
codec.decoder.time_floor=0
codec.decoder.heads=3
codec.time_shift=0
data.padded_vocab_size=-5
data.response_close=
data.understood_policy=naflex
data.understood_policy=pad data.policy=bucket encoder.naflex=True
data.unconditional=gone
unified.image_positions=spiral
sample.sampler=huen
sample.guidance_interval=(0.9,0.1)
sample.grid=released
sample.edit_start=1.0
codec.time=normal
unified.time=normal
codec.decoder.prediction=noise
unified.prediction=noise
pretrain.log_every=0
pretrain.keep=0
pretrain.spike_factor=0.5
pretrain.keep_best=2
pretrain.clip_norm=0
pretrain.decay_share=0
pretrain.decay_share=1.5
pretrain.ema_warmup=True
pretrain.mu_dtype=float16
pretrain.groups=('transformer/.*',)
autoencoder.widths=(4,4,4,4,4,4) stages=autoencoder
autoencoder.widths=(4,6) autoencoder.norm_groups=4 stages=autoencoder
autoencoder.perceptual_layers=() stages=autoencoder
data.policy=naflex stages=autoencoder
autoencoder.discriminator.width=3 autoencoder.discriminator.weight=1 stages=autoencoder
autoencoder.discriminator.layers=5 autoencoder.discriminator.weight=1 stages=autoencoder
autoencoder.accumulate=2 autoencoder.discriminator.weight=1 stages=autoencoder
codec.perceptual_layers=()
codec.perceptual_layers=(0.5,2)
codec.perceptual_time=-1
unified.z_loss=-1e-4
pretrain.eval_by_task=True data.packed=rows
pretrain.lora.rank=-1
pretrain.lora.alpha=0
pretrain.lora.targets=('(',)
pretrain.lora.targets=() pretrain.lora.rank=2
unified.transformer.logit_softcap=-1
data.scenes.alike_share=0.8
data.scenes.shapes=()
""".strip().splitlines()
ACCEPTED = """
encoder.save_every=0
encoder.steps=1e3
encoder.learning_rate=0
encoder.warmup_steps=0
encoder.warmup_steps=100
encoder.batch_size=1
data.scenes.shapes=circle
stages=encoder,codec
stages=autoencoder
autoencoder.discriminator.weight=1 stages=autoencoder
codec.pool=2 codec.compressor=pool
unified.transformer.unroll=7
pretrain.ema_warmup=True pretrain.ema_decay=0.99
pretrain.groups={'match':'transformer/.*'}
codec.perceptual_layers=0.25,0.5
data.padded_vocab_size=5000
encoder.keep_best=1 encoder.eval_every=1
""".strip().splitlines()


def check(flags: str) -> None:
    config = tiny_config()
    apply_overrides(config, [f"--config.{flag}" for flag in flags.split()])
    check_settings(config, config.stages)


@pytest.mark.parametrize("flags", REFUSED)
def test_a_value_out_of_range_is_refused_at_the_start_in_one_line(flags, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(ConfigError) as error:
        check(flags)
    message = str(error.value)
    assert "\n" not in message and flags.split("=")[0].rpartition(".")[2] in message


@pytest.mark.parametrize("flags", ACCEPTED)
def test_an_unusual_value_that_can_be_is_accepted(flags):
    check(flags)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("compute_dtype", "float8", "compute_dtype='float8' is unknown; choose float32 or bfl"),
        ("sample__sampler", "huen", "sample.sampler='huen' is unknown; choose euler or heun"),
        ("pretrain__log_every", 0, "pretrain.log_every=0: give at least 1"),
        (
            "pretrain__spike_factor",
            0.5,
            "pretrain.spike_factor=0.5 would skip ordinary steps; give",
        ),
        (
            "pretrain__keep_best",
            2,
            "keep_best=2 needs a held-out loss at every checkpoint; set",
        ),
        ("pretrain__accumulate", 3, "batch_size=4 cannot be split into pretrain.accumulate=3 eq"),
        ("pretrain__clip_norm", 0.0, "pretrain.clip_norm=0.0: give above 0"),
        ("codec__latent_dim", 7, "take one of 1, 2, 4, 8, 16, 32, or set codec.compressor_heads"),
        ("data__image_size", 50, "not a multiple of data.patch=16; take 48 or 64"),
    ],
)
def test_the_message_says_what_would_do(key, value, message):
    with pytest.raises(ConfigError, match=message):
        check_settings(tiny_config(**{key: value}), ("codec", "pretrain"))


def test_rows_that_do_not_divide_over_the_context_axis_are_refused():
    config = tiny_config(pretrain__sequence_length=90)
    check_on_mesh("pretrain", config, {"context": 2})
    check_on_mesh("codec", config, {"context": 4})  # pictures are not split
    with pytest.raises(ConfigError, match="pretrain.sequence_length=90 .* over context=4 of the"):
        check_on_mesh("pretrain", config, {"context": 4})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("transformer.widht=64", "did you mean transformer.width=...?"),
        ("fold=2", "is not a size of the unified model"),
        ("transformer.head_dim=16", "is not a size of the unified model"),
        ("transformer.width=small", "give the size as a number above 0, transformer.width=64"),
        ("transformer.width", "give the size as a number above 0, transformer.width=64"),
        ("transformer.width=0", "give the size as a number above 0, transformer.width=64"),
        ("transformer.width=64", "set tied_head=False"),
        ("transformer.kv_heads=3", "has transformer.heads=2 and transformer.kv_heads=3,"),
        ("flow_decoder.depth=2", "which has no unified.flow_decoder; leave it out"),
        ("uae.vision.width=8", "does nothing with unified.pathway=transfusion"),
        ("head.depth=2", "does nothing with unified.head.kind=linear; leave it out"),
    ],
)
def test_sizes_of_the_tuned_model_are_checked(entry, message):
    tied = "kv_heads" not in entry
    config = tiny_config(unified__tuned_at=(entry,), unified__transformer__tied_head=tied)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        check_settings(config, ("pretrain",))
    assert "unified.tuned_at" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pathway", "sizes", "message"),
    [
        ("query", {"flow_decoder.width": 16}, "flow_decoder.width=16 and flow_decoder.heads=2"),
        ("query", {"transformer.heads": 1}, "transformer.width=32 and transformer.heads=1"),
        ("cheers", {"transformer.width": 16}, "transformer.width=16 and cheers.semantics.heads=2"),
        ("query", {"flow_decoder.width": 16, "flow_decoder.heads": 1}, ""),
        ("cheers", {"transformer.width": 16, "cheers.semantics.heads": 1}, ""),
        ("transfusion", {"transformer.width": 16}, ""),  # its heads have a key of their own
    ],
)
def test_heads_of_the_tuned_model_have_as_many_channels(pathway, sizes, message):
    given = tuple(f"{name}={size}" for name, size in sizes.items())
    config = tiny_config(unified__pathway=pathway, unified__tuned_at=given)
    config.unified.transformer.tied_head = False
    if not message:
        check_tuned(config)
        return
    with pytest.raises(ConfigError, match=f"{message}, so a head has other channels"):
        check_tuned(config)


def test_a_size_of_the_tuned_model_is_given_once():
    sizes = ("transformer.width=8", "transformer.width=16")
    with pytest.raises(ConfigError, match=r"tuned_at gives transformer.width twice; leave one"):
        check_tuned(tiny_config(unified__tuned_at=sizes))


@pytest.mark.parametrize(
    "text",
    ["transformer.width=8,transformer.depth=1", "('transformer.width=8', 'transformer.depth=1')"],
)
def test_commas_separate_sizes_on_the_command_line(text):
    found = parse("unified.tuned_at", KEYS["unified.tuned_at"], text)
    assert found == ("transformer.width=8", "transformer.depth=1")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "muon"}, "the rule for longer training is known for adamw only"),
        ({"steps": 8}, "1 - b1 would become 1.25; a run can be less than 10 times shorter"),
        ({"tuned_steps": 0, "lora": {"rank": 4}}, "set pretrain.lora.rank=0 or unified.tuned_at"),
    ],
)
def test_what_no_rule_of_rescaling_covers_is_refused_at_the_start(changes, message):
    config = tiny_config(
        unified__tuned_at=("transformer.width=64",), unified__transformer__tied_head=False
    )
    config.pretrain.update({"steps": 400, "tuned_steps": 100, "optimizer": "adamw", **changes})
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_settings(config, ("pretrain",))


@pytest.mark.parametrize("read", ["latents", "channel_concat", "sequence_concat"])
def test_redrawing_a_picture_whose_latents_are_read_is_refused(read):
    config = tiny_config(unified__understanding=read)
    with pytest.raises(ConfigError, match=f"reca has the task redraw with .*understanding={read}"):
        check_settings(config, ("reca",))
    check_settings(config, ("longcap", "sft"))
    config.sft.mixture.redraw = 0.1
    with pytest.raises(ConfigError, match="sft has the task redraw"):
        check_settings(config, ("sft",))


def test_redrawing_by_a_source_of_its_own_is_looked_at():
    config = base.get_config()
    config.unified.understanding = "latents"
    config.sft.mixture.text_to_image = config.pretrain.mixture.text_to_image = 1.0
    sources = "({'kind':'scenes','name':'a','tasks':'redraw','stages':'sft'},{'kind':'scenes'})"
    apply_overrides(config, [f"--config.data.sources={sources}"])
    with pytest.raises(ConfigError, match="sft has the task redraw"):
        check_settings(config, ("sft",))
    check_settings(config, ("pretrain",))


def test_only_the_stages_that_run_are_looked_at():
    check_settings(tiny_config(sft__log_every=0), ("encoder", "codec", "pretrain"))


def test_an_unknown_stage_is_named():
    with pytest.raises(ConfigError, match="stage 'paint' is unknown; stages are encoder, autoenc"):
        check_settings(base.get_config(), ("paint",))


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
