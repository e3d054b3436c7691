"""What each stage trains, on which terms, and what it leaves alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines.build import sequence_config
from data_pipelines.images import patchify
from data_pipelines.loading.pictures import PictureBatch
from tests.data.samples import picture
from tests.families.documents import ALL, documents, lively, pack
from tests.tiny import tiny_config
from unicom_jax.core.layers import LayerNorm, RMSNorm
from unicom_jax.core.pixels import to_unit
from unicom_jax.families.build import build_codec, build_encoder
from unicom_jax.models.contrastive import unit_norm
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.training.stages.codec import (
    add_latent_noise,
    channel_deviations,
    codec_stage,
    measure_statistics,
    perceptual_loss,
)
from unicom_jax.training.stages.encoder import encoder_stage
from unicom_jax.training.stages.unified import unified_stage
from unicom_jax.training.state import merge, split
from unicom_jax.training.step import Trainer


def pictures(count: int = 4, first: int = 0) -> PictureBatch:
    patches = [patchify(picture(first + i, 32, 32), 16) for i in range(count)]
    tokens = np.random.default_rng(first).integers(1, 400, (count, 16)).astype(np.int32)
    grids, lengths = np.full((count, 2), 2, np.int32), np.full(count, 16, np.int32)
    return PictureBatch(np.stack(patches), grids, tokens, lengths)


@pytest.fixture(scope="module")
def vision():
    return lively(build_encoder(tiny_config()).vision)


def one_step(stage, frozen, batch):
    """A stage's weights before and after one step, and the metrics."""
    trainer = Trainer(
        stage, optax.apply_if_finite(optax.sgd(0.1), 5), lambda _: 0.1, make_mesh(), 0
    )
    start = lively(stage.module)
    state = trainer.init_state(jax.tree.map(jnp.copy, start))
    state, metrics = trainer.train_step()(state, frozen, batch)
    return start, state.params, {name: float(value) for name, value in metrics.items()}


def changed(before, after) -> set[str]:
    """Top names of the weights that differ."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return {path[0].key for (path, old), new in pairs if not np.array_equal(old, new)}


# ---- encoder ------------------------------------------------------------------------------


def test_the_encoder_stage_trains_both_towers_and_the_temperature():
    stage = encoder_stage("encoder", tiny_config())
    before, after, metrics = one_step(stage, {}, pictures())
    assert changed(before, after) == {"vision", "text", "logit_scale", "logit_bias"}
    np.testing.assert_allclose(metrics["loss"], metrics["loss/contrastive"], rtol=1e-6)
    assert 0.0 <= metrics["loss/retrieval"] <= 1.0


# ---- codec --------------------------------------------------------------------------------


def test_the_codec_stage_trains_all_but_the_statistics_on_its_three_terms(vision):
    config = tiny_config(codec__perceptual_weight=0.5)
    stage = codec_stage("codec", config, lambda: iter(()))
    before, after, metrics = one_step(stage, {"encoder": vision}, pictures())
    assert changed(before, after) == {"compressor", "decompressor", "pixel_decoder"}
    expected = (
        metrics["loss/flow"] + 0.1 * metrics["loss/feature"] + 0.5 * metrics["loss/perceptual"]
    )
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_a_term_of_weight_zero_is_not_computed(vision):
    stage = codec_stage("codec", tiny_config(codec__perceptual_weight=0.0), lambda: iter(()))
    terms = jax.eval_shape(
        stage.loss,
        stage.module.abstract(),
        {"encoder": vision},
        pictures(),
        jax.random.split(jax.random.key(0), 4),
    )
    assert {name for name in terms if "/" not in name} == {"flow", "feature"}


def test_noise_on_latents_is_relative_to_each_channels_deviation_over_real_tokens():
    rng = np.random.default_rng(0)
    raw = jnp.asarray(rng.standard_normal((3, 64, 8)) * np.arange(1, 9), jnp.float32)
    real = jnp.ones((3, 64)).at[0, 32:].set(0.0)
    keys = jax.random.split(jax.random.key(0), 3)
    noise = add_latent_noise(raw, real, keys, 0.5) - raw
    # Ten times the latents get ten times the noise: a compressor gains nothing by their size.
    larger = add_latent_noise(10.0 * raw, real, keys, 0.5) - 10.0 * raw
    np.testing.assert_allclose(larger, 10.0 * noise, rtol=1e-3, atol=1e-3)
    padded = raw.at[0, 32:].set(1e3)
    at_padding = add_latent_noise(padded, real, keys, 0.5) - padded
    np.testing.assert_allclose(at_padding[1:], noise[1:], rtol=1e-3, atol=1e-3)
    strengths = np.std(noise / np.std(raw, axis=(0, 1)), axis=(1, 2))
    assert np.all(strengths < 0.55) and np.ptp(strengths) > 0.05  # each picture has its own


def test_the_perceptual_distance_is_a_mean_over_layers_weighted_by_picture():
    rng = np.random.default_rng(0)
    a, b = (
        tuple(rng.standard_normal((2, 3, 4)).astype(np.float32) for _ in range(2)) for _ in "ab"
    )
    weight = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]], np.float32)
    total, count = perceptual_loss(a, b, weight, normalise=False)
    squares = np.mean([np.square(x - y).mean(-1) for x, y in zip(a, b, strict=True)], axis=0)
    assert count == 2.0
    np.testing.assert_allclose(total, np.sum(squares * weight), rtol=1e-5)


def test_normalised_states_are_compared_by_their_angle_whatever_their_size():
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((1, 3, 4)).astype(np.float32) for _ in "ab")
    cosine = np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    total, _ = perceptual_loss((100.0 * a,), (b,), np.ones((1, 3)), normalise=True)
    np.testing.assert_allclose(total, np.sum(2 - 2 * cosine), rtol=1e-4)
    flat = jax.grad(lambda x: perceptual_loss((x,), (b,), np.ones((1, 3)), normalise=True)[0])
    assert np.isfinite(flat(jnp.zeros((1, 3, 4)))).all()


def test_the_perceptual_term_looks_at_the_layers_and_times_of_its_settings(vision):
    """Against the plain term by hand: the same picture, time and noise, one layer or two."""
    batch, keys = pictures(), jax.random.split(jax.random.key(0), 4)
    frozen, params = {"encoder": vision}, lively(build_codec(tiny_config()))

    settings = (
        {"perceptual_layers": (0.0,)},
        {"perceptual_layers": (1.0,)},
        {"perceptual_layers": (0.0, 1.0)},
        {},
        {"perceptual_time": 1.0},
    )

    @jax.jit
    def terms(params):
        configs = (
            tiny_config(
                codec__perceptual_weight=0.5, **{f"codec__{k}": v for k, v in changes.items()}
            )
            for changes in settings
        )
        stages = (codec_stage("codec", config, lambda: iter(())) for config in configs)
        return [stage.loss(params, frozen, batch, keys)["perceptual"] for stage in stages]

    first, last, both, default, weighted = (tuple(map(float, pair)) for pair in terms(params))
    assert both[0] == pytest.approx((first[0] + last[0]) / 2, rel=1e-5)
    assert default == first  # half of one block is none
    assert 0 < weighted[1] < first[1] == 16 and weighted[0] < first[0]


def test_a_latent_channel_that_does_not_vary_leaves_all_gradients_finite():
    raw = jax.random.normal(jax.random.key(0), (2, 4, 3)).at[..., 1].set(0.5)
    real, keys = jnp.ones((2, 4)), jax.random.split(jax.random.key(1), 2)

    def loss(raw):
        return jnp.sum(jnp.square(add_latent_noise(raw, real, keys, 0.5)))

    gradient = jax.jit(jax.grad(loss))(raw)
    assert np.isfinite(gradient).all() and np.abs(gradient[..., 1]).min() > 0
    np.testing.assert_allclose(
        channel_deviations(raw, real)[0], np.std(raw, axis=(0, 1))[0], rtol=1e-5
    )
    assert np.isfinite(jax.grad(lambda x: jnp.sum(channel_deviations(x, 0 * real)))(raw)).all()


@pytest.mark.parametrize("norm", [unit_norm, LayerNorm(4, affine=False), RMSNorm(4)])
def test_a_norm_of_a_constant_vector_has_a_finite_gradient(norm):
    params = {"scale": jnp.ones(4)}
    apply = norm if norm is unit_norm else lambda x: norm(params, x)
    for constant in (0.0, 1.0):
        assert np.isfinite(jax.grad(lambda x: jnp.sum(apply(x)))(jnp.full(4, constant))).all()


def test_noise_on_latents_changes_the_losses_and_ties_the_rows_of_a_batch(vision):
    plain, noisy = (
        codec_stage("codec", tiny_config(codec__latent_noise=most), lambda: iter(()))
        for most in (0.0, 0.5)
    )
    assert plain.rows_are_independent and not noisy.rows_are_independent
    keys = jax.random.split(jax.random.key(0), 4)
    arguments = lively(plain.module), {"encoder": vision}, pictures(), keys
    without, given = jax.jit(lambda *x: (plain.loss(*x), noisy.loss(*x)))(*arguments)
    assert given["feature"][0] != without["feature"][0]
    assert given["flow"][0] != without["flow"][0]


def test_latent_statistics_are_mean_and_deviation_over_all_batches(vision):
    config = tiny_config()
    codec, encoder = build_codec(config), build_encoder(config).vision
    params, batches = lively(codec), [pictures(4), pictures(4, first=10)]
    measured = measure_statistics(codec, encoder, params, {"encoder": vision}, iter(batches))
    patches = np.concatenate([batch.patches for batch in batches])
    grids = np.full((8, 2), 2, np.int32)

    @jax.jit
    def compressed(params, pixels):
        return codec.compress(params, encoder(vision, pixels, grids), grids)

    raw = compressed(params, to_unit(patches))
    values = np.asarray(raw, np.float64).reshape(-1, 8)
    np.testing.assert_allclose(measured["statistics"]["mean"], values.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(measured["statistics"]["std"], values.std(0), rtol=1e-4)
    latents = codec.normalise(measured, raw).reshape(-1, 8)
    np.testing.assert_allclose(latents.mean(0), np.zeros(8), atol=1e-4)
    np.testing.assert_allclose(latents.std(0), np.ones(8), atol=1e-3)
    assert changed(params, measured) == {"statistics"}


def test_a_latent_channel_that_never_varies_is_named(vision):
    config = tiny_config(codec__compressor="mlp")
    codec, encoder = build_codec(config), build_encoder(config).vision
    dead = jax.tree.map(jnp.zeros_like, lively(codec))
    with pytest.raises(ValueError, match=r"latent channels \[0, 1, .*\] are constant; train"):
        measure_statistics(codec, encoder, dead, {"encoder": vision}, iter([pictures(2)]))


# ---- unified ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frozen(vision):
    return {"encoder": vision, "codec": lively(build_codec(tiny_config()), 1)}


def packed(config):
    sequence = sequence_config(config)
    return pack(documents(ALL, sequence), [[0, 1, 2], [3, 4]], sequence)


def test_a_codec_whose_compressor_has_no_weights_has_a_loss(vision):
    """Splitting and merging must not lose the compressor's name: it is called without weights."""
    stage = codec_stage("codec", tiny_config(codec__compressor="identity"), lambda: iter(()))
    trained, held = split(stage.module.abstract(), stage.freeze)
    assert set(trained) == {"compressor", "decompressor", "pixel_decoder"}
    keys = jax.random.split(jax.random.key(0), 4)
    terms = jax.eval_shape(stage.loss, merge(trained, held), {"encoder": vision}, pictures(), keys)
    assert {name for name in terms if "/" not in name} == {"flow", "feature"}


def test_the_query_pathway_learns_to_read_in_a_stage_without_a_flow_loss():
    config = tiny_config(unified__pathway="query", align__flow_weight=0.0)
    parts = {}
    for name in ("align", "pretrain"):
        stage = unified_stage(name, config)
        parts[name], _ = split(stage.module.specs(), stage.freeze)
    assert set(parts["align"]) == {"transformer", "embedding"}
    assert set(parts["pretrain"]) == {"queries", "connector", "flow_decoder"}


@pytest.mark.parametrize(
    ("pathway", "trained"),
    [
        ("transfusion", {"transformer", "embedding", "head"}),
        ("query", {"queries", "connector", "flow_decoder"}),
    ],
)
def test_a_unified_stage_trains_its_pathway_only(frozen, pathway, trained):
    config = tiny_config(unified__pathway=pathway)
    stage = unified_stage("pretrain", config)
    before, after, metrics = one_step(stage, frozen, packed(config))
    assert changed(before, after) == trained
    expected = 5.0 * metrics["loss/flow"] + metrics["loss/text"]  # λ_diff : λ_text
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


def test_a_stage_freezes_what_its_settings_say_on_top():
    config = tiny_config(align__freeze=("transformer/.*",))
    stage = unified_stage("align", config)
    trained, held = split(stage.module.specs(), stage.freeze)
    assert set(trained) == {"embedding", "head"} and set(held) == {"transformer"}


def test_a_loss_weight_of_zero_leaves_its_term_out_of_the_loss():
    stage = unified_stage("pretrain", tiny_config(pretrain__text_weight=0.0))
    assert stage.weights == {"flow": 5.0}
