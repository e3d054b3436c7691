"""Rows that are assembled on the device: token ids of several pieces, and captions after a picture.
Ids are -1 where a row has none.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Shaped

from unicom_jax.core.batch import MaskIntervals, MixedBatch, Role
from unicom_jax.core.module import Params
from unicom_jax.families.unified import UnifiedModel
from unicom_jax.rl.template import Template


def every_row(ids: Shaped[Array, " n"], rows: int) -> Shaped[Array, "{rows} n"]:
    """The same ids in every row."""
    return jnp.broadcast_to(jnp.asarray(ids), (rows, len(ids)))


def packed(*pieces: Int[Array, "B _"]) -> tuple[Int[Array, "B S"], Int[Array, "B S"]]:
    """The pieces one after the other, without the padding between them; and the number of the piece
    that each id comes from."""
    ids = jnp.concatenate(pieces, axis=1)
    parts = jnp.asarray(np.repeat(np.arange(len(pieces)), [p.shape[1] for p in pieces]))
    order = jnp.argsort(ids < 0, axis=1, stable=True)
    return jnp.take_along_axis(ids, order, axis=1), parts[order]


def text_rows(tokens: Int[Array, "B S"]) -> MixedBatch:
    """Rows of words alone; `tokens` are padded with -1 at the end."""
    rows, slots = tokens.shape
    real, index = tokens >= 0, jnp.arange(slots, dtype=jnp.int32)
    nothing = jnp.zeros((rows, slots), jnp.int32)
    seen = jnp.where(real, index + 1, 0)
    position = jnp.where(real, index, 0)
    return MixedBatch(
        tokens=jnp.maximum(tokens, 0),
        positions=jnp.stack([position, position], axis=-1),
        mask=MaskIntervals(nothing, seen, nothing, nothing),
        roles=jnp.where(real, int(Role.TEXT), int(Role.PAD)),
        image_index=nothing,
        image_token=nothing,
        targets=nothing,
        target_weights=jnp.zeros((rows, slots)),
        patches=None,
        grids=jnp.zeros((rows, 1, 2), jnp.int32),
        draws=jnp.full((rows, 1), -1, jnp.int32),
    )


def picture_rows(
    template: Template, patches: Shaped[Array, "B N C"], grids: Int[Array, "B 2"]
) -> MixedBatch:
    """The rows after which captions of these pictures are written."""
    rows = len(grids)
    alike = jax.tree.map(
        lambda x: jnp.broadcast_to(jnp.asarray(x), (rows, *x.shape[1:])), template.read
    )
    return alike.replace(patches=patches[:, None], grids=grids[:, None])


def with_captions(template: Template, rows: MixedBatch, tokens: Int[Array, "B T"]) -> MixedBatch:
    """`picture_rows` with captions in the slots in which they were written."""
    count, start = tokens.shape[1], template.slots
    real, index = tokens >= 0, jnp.arange(count, dtype=jnp.int32)
    nothing = jnp.zeros(tokens.shape, jnp.int32)
    position = template.next_position + index + nothing

    def behind(first: jax.Array, more: jax.Array) -> jax.Array:
        return jnp.concatenate([first, more.astype(first.dtype)], axis=1)

    mask = MaskIntervals(
        nothing,
        jnp.where(real, template.length, 0),
        jnp.where(real, start, 0),
        jnp.where(real, start + index + 1, 0),
    )
    return rows.replace(
        tokens=behind(rows.tokens, jnp.maximum(tokens, 0)),
        positions=behind(rows.positions, jnp.stack([position, position], axis=-1)),
        mask=jax.tree.map(behind, rows.mask, mask),
        roles=behind(rows.roles, jnp.where(real, int(Role.TEXT), int(Role.PAD))),
        image_index=behind(rows.image_index, nothing),
        image_token=behind(rows.image_token, nothing),
        targets=behind(rows.targets, nothing),
        target_weights=behind(rows.target_weights, nothing),
    )


def log_probs_of(
    model: UnifiedModel,
    params: Params,
    hidden: Float[Array, "B T W"],
    tokens: Int[Array, "B T"],
) -> Float32[Array, "B T"]:
    """Log-probability, in fp32, of token t given hidden state t; arbitrary where there is no token.

    The backward pass computes logits again instead of keeping them.
    """

    @jax.checkpoint
    def pick(params: Params, hidden: jax.Array) -> jax.Array:
        logits = model.logits(params, hidden).astype(jnp.float32)
        chosen = jnp.take_along_axis(logits, jnp.maximum(tokens, 0)[..., None], axis=-1)[..., 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    return pick(params, hidden)


def caption_log_probs(
    model: UnifiedModel,
    params: Params,
    prepared: object,
    rows: MixedBatch,
    template: Template,
    tokens: Int[Array, "B T"],
) -> Float32[Array, "B T"]:
    """Log-probabilities of captions after their pictures, by the pass over whole rows of training.

    Args:
      prepared: the image model's `prepare` of the pictures.
      rows: the result of `picture_rows`.
    """
    whole, last = with_captions(template, rows, tokens), template.length - 1
    hidden = model.read(params, whole, prepared)
    before = [hidden[:, last : last + 1], hidden[:, template.slots : -1]]
    return log_probs_of(model, params, jnp.concatenate(before, axis=1), tokens)
