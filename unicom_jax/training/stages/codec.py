"""Stage `codec`: compressor, decompressor and pixel decoder together, then the latent statistics.

    L = flow + λ_perceptual · perceptual + λ_feature · ‖Z − decompressor(compressor(Z))‖²

With `latent_noise`, all terms start from latents with added noise, so that the decoder can also
paint imperfect latents from a generator.

The flow is over patches of pixels, or over latents of a frozen autoencoder into which the step
encodes the picture (`models/paint_space.py`). The perceptual term compares hidden states of the
frozen encoder for the picture and for the clean picture that the pixel decoder predicts at the
drawn time. This is always in pixels, so with an autoencoder the gradient passes back through its
decoder. The term is the mean over `perceptual_layers`. As in LPIPS (Zhang et al. 2018), hidden
states may be normalised token by token (`perceptual_normalise`); otherwise layers and tokens with
large values dominate. Since a prediction from nearly pure noise can only be a blur, pictures may be
weighted by t^p, p = `perceptual_time`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unicom_jax.core.activations import PICTURES, place
from unicom_jax.core.flow import flow_loss, sample_time
from unicom_jax.core.losses import LossTerm, LossTerms
from unicom_jax.core.module import Module, Params
from unicom_jax.core.pixels import to_unit
from unicom_jax.families.build import build_codec, build_encoder, build_space
from unicom_jax.training.stages.statistics import (
    STATISTICS,
    channel_moments,
    latent_facts,
    with_statistics,
)
from unicom_jax.training.step import Stage


def codec_stage(
    name: str, config: Mapping[str, Any], statistics_batches: Callable[[], Iterator[Any]]
) -> Stage:
    """The codec stage over the frozen encoder (`frozen["encoder"]`, a vision tower's weights).

    `frozen["autoencoder"]` holds the autoencoder's weights if the configuration names one.

    Args:
      statistics_batches: training batches of pictures on which latent statistics are measured.
    """
    settings = config[name]
    vision, codec = build_encoder(config).vision, build_codec(config)
    space, dtype = build_space(config), config["compute_dtype"]
    layers = tuple(int(share * vision.depth) for share in settings["perceptual_layers"])

    def loss(params: Params, frozen: Params, batch: Any, row_keys: jax.Array) -> LossTerms:
        batch = jax.tree.map(lambda x: place(x, PICTURES), batch)
        pixels = to_unit(batch.patches)
        features = jax.lax.stop_gradient(
            vision(frozen["encoder"], pixels.astype(dtype), batch.grids)
        )
        raw = codec.compress(params, features, batch.grids)
        if settings["latent_noise"]:
            kept = _real_tokens(batch.grids, raw.shape[1], features.shape[1])
            raw = add_latent_noise(raw, kept, row_keys, settings["latent_noise"])
        restored = codec.decompress(params, raw, batch.grids)
        real = _real_tokens(batch.grids, features.shape[1], features.shape[1])

        tokens = jax.lax.stop_gradient(space.encode(frozen, pixels, batch.grids))
        time, noise = _draw(row_keys, tokens.shape[1:], settings["time"], settings["time_shift"])
        flow, painted = codec.pixel_decoder.loss(
            params["pixel_decoder"], tokens, noise, time, restored, batch.grids
        )
        terms = {**flow, "feature": flow_loss(restored, features, real)}
        if settings["perceptual_weight"]:

            def look(patches: jax.Array) -> tuple[jax.Array, ...]:
                patches = patches.astype(dtype)
                return vision.hidden_states(frozen["encoder"], patches, batch.grids, layers)

            target = jax.lax.stop_gradient(look(pixels))
            painted = space.decode(frozen, painted, batch.grids)
            weight = real * time[:, None] ** settings["perceptual_time"]
            normalise = settings["perceptual_normalise"]
            terms["perceptual"] = perceptual_loss(look(painted), target, weight, normalise)
        return terms

    untrained = [f"pixel_decoder/{pattern}" for pattern in codec.pixel_decoder.untrained]
    weights = {"flow": settings["flow_weight"], "feature": settings["feature_weight"]}
    if settings["perceptual_weight"]:
        weights["perceptual"] = settings["perceptual_weight"]
    return Stage(
        name=name,
        module=codec,
        loss=loss,
        weights=weights,
        freeze=(STATISTICS, *untrained, *settings["freeze"]),
        rows_are_independent=not settings["latent_noise"],  # scaled by deviations over the batch
        finish=lambda params, frozen: measure_statistics(
            codec, vision, params, frozen, statistics_batches(), dtype
        ),
        facts=_statistics_facts,
    )


def perceptual_loss(
    states: Sequence[jax.Array],
    targets: Sequence[jax.Array],
    weight: jax.Array,
    normalise: bool,
) -> LossTerm:
    """Squared distance of hidden states (B, N, W), one per layer: a mean over channels and layers,
    weighted by `weight` (B, N).

    Args:
      normalise: divide each token's state by its root mean square first; the distance of two states
        is then 2 - 2 cos of the angle between them.
    """

    def unit(state: jax.Array) -> jax.Array:
        state = state.astype(jnp.float32)
        square = jnp.mean(jnp.square(state), axis=-1, keepdims=True)
        return state * jax.lax.rsqrt(square + 1e-6)

    if normalise:
        states, targets = ([unit(state) for state in some] for some in (states, targets))
    terms = [flow_loss(*pair, weight) for pair in zip(states, targets, strict=True)]
    return sum(total for total, _ in terms) / len(terms), terms[0][1]


def _statistics_facts(params: Params) -> dict[str, list[float]]:
    statistics = jax.device_get(params["statistics"])
    return latent_facts(statistics["mean"], statistics["std"])


def _real_tokens(grids: jax.Array, tokens: int, patches: int) -> jax.Array:
    """(B, tokens) fp32, 1 at real tokens; `patches` is the number of patches of `tokens` tokens."""
    lengths = grids[:, 0] * grids[:, 1] // (patches // tokens)
    return (jnp.arange(tokens)[None, :] < lengths[:, None]).astype(jnp.float32)


def _draw(
    row_keys: jax.Array, shape: tuple[int, ...], kind: str, shift: float
) -> tuple[jax.Array, jax.Array]:
    """Flow time (B,) and noise (B, N, C), from one key per row."""

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        time_key, noise_key = jax.random.split(key)
        return sample_time(time_key, (), kind, shift), jax.random.normal(noise_key, shape)

    return jax.vmap(draw)(row_keys)


def add_latent_noise(
    raw: jax.Array, real: jax.Array, row_keys: jax.Array, most: float
) -> jax.Array:
    """Raw latents (B, n, d) with Gaussian noise of up to `most` of each channel's deviation.

    Noise in the decoder's training follows RAE (Zheng et al. 2025). Here the compressor is trained
    with it too: since the noise is proportional to a channel's deviation, a channel cannot escape
    it by growing, only by separating what matters. Each row draws its strength from U[0, most).
    """
    spread = channel_deviations(raw, real)

    def draw(key: jax.Array) -> jax.Array:
        strength_key, noise_key = jax.random.split(jax.random.fold_in(key, 1))
        strength = jax.random.uniform(strength_key, (), maxval=most)
        return strength * jax.random.normal(noise_key, raw.shape[1:])

    return raw + spread * jax.vmap(draw)(row_keys)


def channel_deviations(raw: jax.Array, real: jax.Array) -> jax.Array:
    """Standard deviation (d,) of each channel of (B, n, d) over tokens where `real` (B, n) is 1.

    At least 1e-6, with no gradient below: the root's gradient is infinite at 0, and a channel that
    does not vary (yet) would turn all gradients into NaN.
    """
    real = real[..., None]
    count = jnp.maximum(jnp.sum(real), 1.0)
    mean = jnp.sum(raw * real, axis=(0, 1)) / count
    variance = jnp.sum(jnp.square(raw - mean) * real, axis=(0, 1)) / count
    return jnp.sqrt(jnp.maximum(variance, 1e-12))


def measure_statistics(
    codec: Module,
    vision: Module,
    params: Params,
    frozen: Params,
    batches: Iterator[Any],
    compute_dtype: str = "float32",
) -> Params:
    """Mean and deviation of every latent channel over the real tokens of `batches`.

    Returns:
      `params` with its `statistics` replaced.

    Raises:
      ValueError: a channel never varies, so nothing can be drawn in it.
    """

    @jax.jit
    def latents_of(params: Params, frozen: Params, batch: Any) -> tuple[jax.Array, jax.Array]:
        pixels = to_unit(batch.patches).astype(compute_dtype)  # as the unified stages read them
        features = vision(frozen["encoder"], pixels, batch.grids)
        raw = codec.compress(params, features, batch.grids)
        return raw, _real_tokens(batch.grids, raw.shape[1], features.shape[1]) > 0

    mean, variance = channel_moments(
        (latents_of(params, frozen, batch) for batch in batches),
        "train the codec longer or lower codec.latent_dim",
    )
    return with_statistics(params, {"mean": mean, "std": np.sqrt(variance)})
