"""The compiled programs behind `Generator`: read a prefix, write words, paint pictures.

They are functions of (models, params, arrays) with the models static, so two generators of the same
configuration (a trained model and its untrained baseline) share every compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Int32, Key, UInt8

from unicom_jax.core.batch import MaskIntervals, MixedBatch
from unicom_jax.core.module import Module, Params
from unicom_jax.core.pixels import to_unit
from unicom_jax.families.latents import Prepared
from unicom_jax.inference.drawing import Drawing, draw_latents
from unicom_jax.inference.text import Sampling, generate
from unicom_jax.models.codec import Codec
from unicom_jax.models.paint_space import PaintSpace
from unicom_jax.models.transformer import KVCache
from unicom_jax.models.vision_encoder import VisionEncoder

Weights = Mapping[
    str, Params
]  # trees `vision`, `codec`, `unified`, for a LatentSpace `autoencoder`


# The scopes of a program's parts, by which `planning/sampling.py` and profiles know them.
READING, WRITING, DRAWING, PAINTING = "reading", "writing", "drawing", "painting"


@dataclasses.dataclass(frozen=True)
class Models:
    """The modules of a configuration."""

    vision: VisionEncoder
    codec: Codec
    unified: Module
    space: PaintSpace


def look(
    models: Models, params: Weights, patches: UInt8[Array, "B N C"], grids: Int[Array, "B 2"]
) -> Float[Array, "B N F"]:
    """Features, in the model's compute dtype."""
    pixels = to_unit(patches).astype(models.unified.compute_dtype)
    return models.vision(params["vision"], pixels, grids)


def _paint(
    models: Models,
    params: Weights,
    latents: Float[Array, "B n d"],
    grids: Int[Array, "B 2"],
    noise: Float[Array, "B N channels"],
    steps: int,
) -> Float32[Array, "B N C"]:
    """Patches in [-1, 1] of latents, from noise in the paint space."""
    tokens = models.codec.decode(params["codec"], latents, grids, noise, steps)
    return models.space.decode(params, tokens, grids)


def read(
    models: Models, params: Weights, batch: MixedBatch, room: int
) -> tuple[Float[Array, "B S W"], KVCache]:
    """Hidden states of prefixes, and a cache with `room` slots behind them."""
    rows, images = batch.grids.shape[:2]
    patches = batch.patches.reshape(rows * images, *batch.patches.shape[2:])
    grids = batch.grids.reshape(rows * images, 2)
    features = look(models, params, patches, grids)
    latents = models.codec.encode(params["codec"], features, grids)
    features, latents = (x.reshape(rows, images, *x.shape[1:]) for x in (features, latents))
    prepared = Prepared(features, latents, batch.grids)
    unified = models.unified
    slots = batch.tokens.shape[1] + room
    cache = unified.transformer.init_cache(rows, slots, unified.compute_dtype)
    return unified.prefill(params["unified"], batch, prepared, cache)


@partial(jax.jit, static_argnames=("models", "max_tokens", "sampling"))
def write(
    models: Models,
    params: Weights,
    batch: MixedBatch,
    lengths: Int[Array, " B"],
    next_positions: Int[Array, " B"],
    stop: Int[Array, " stops"],
    keys: Key[Array, " B"],
    *,
    max_tokens: int,
    sampling: Sampling,
) -> tuple[Int32[Array, "B {max_tokens}"], Int32[Array, " B"]]:
    """Reads prefixes and continues them; arguments and results as in `inference.text.generate`."""
    with jax.named_scope(READING):
        hidden, cache = read(models, params, batch, max_tokens)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    with jax.named_scope(WRITING):
        return generate(
            models.unified, params["unified"], last, cache, lengths, next_positions, stop, keys,
            start=batch.tokens.shape[1], max_tokens=max_tokens, sampling=sampling,
        )  # fmt: skip


@partial(jax.jit, static_argnames=("models", "pool", "settings", "codec_steps"))
def paint(
    models: Models,
    params: Weights,
    batch: MixedBatch,
    positions: Int[Array, "B n 2"],
    mask: MaskIntervals,
    grids: Int[Array, "pictures 2"],
    latent_noise: Float[Array, "pictures n d"],
    pixel_noise: Float[Array, "pictures tokens channels"],
    *,
    pool: int,
    settings: Drawing,
    codec_steps: int,
) -> Float32[Array, "pictures tokens C"]:
    """Reads prefixes, draws an image behind each and paints it: patches in [-1, 1].

    Args:
      batch: B = pictures * `settings.branches` prefixes, the conditional ones first.
      positions, mask: of the image's n slots.
      grids: patch rows and columns. `pool`: patches on a side of a latent's window.
      pixel_noise: in the paint space.
    """
    with jax.named_scope(READING):
        _, cache = read(models, params, batch, positions.shape[1])
    token_grids = jnp.tile(grids // pool, (settings.branches, 1))
    with jax.named_scope(DRAWING):
        latents = draw_latents(
            models.unified, params["unified"], cache, positions, mask, token_grids, latent_noise,
            settings, start=batch.tokens.shape[1],
        )  # fmt: skip
    with jax.named_scope(PAINTING):
        return _paint(models, params, latents, grids, pixel_noise, codec_steps)


@partial(jax.jit, static_argnames=("models", "codec_steps"))
def reconstruct(
    models: Models,
    params: Weights,
    patches: UInt8[Array, "B N C"],
    grids: Int[Array, "B 2"],
    noise: Float[Array, "B N channels"],
    *,
    codec_steps: int,
) -> Float32[Array, "B N C"]:
    """Patches through encoder and codec to patches in [-1, 1]."""
    features = look(models, params, patches, grids)
    latents = models.codec.encode(params["codec"], features, grids)
    return _paint(models, params, latents, grids, noise, codec_steps)


@partial(jax.jit, static_argnames=("models",))
def pooled_features(
    models: Models, params: Weights, patches: UInt8[Array, "B N C"], grids: Int[Array, "B 2"]
) -> Float[Array, "B F"]:
    """One vector a picture, by the encoder's attention pooling."""
    features = look(models, params, patches, grids)
    return models.vision.pool(params["vision"], features, grids)
