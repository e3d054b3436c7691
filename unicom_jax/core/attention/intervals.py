"""The two-interval mask (`MaskIntervals`) as a full array, its share, and that of padded rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unicom_jax.core.batch import MaskIntervals


def interval_mask(mask: MaskIntervals, keys: int, first: int | jax.Array = 0) -> jax.Array:
    """(B, S, keys) bool: which of the key slots `first` ... `first + keys - 1` each query sees."""
    slots = first + jnp.arange(keys, dtype=jnp.int32)

    def inside(start: jax.Array, stop: jax.Array) -> jax.Array:
        return (start[..., None] <= slots) & (slots < stop[..., None])

    return inside(mask.context_start, mask.context_stop) | inside(mask.span_start, mask.span_stop)


def sees_something(mask: MaskIntervals, keys: int) -> jax.Array:
    """(B, S) bool: whether a query sees any of the key slots 0 ... keys - 1."""

    def meets(start: jax.Array, stop: jax.Array) -> jax.Array:
        return jnp.maximum(start, 0) < jnp.minimum(stop, keys)

    return meets(mask.context_start, mask.context_stop) | meets(mask.span_start, mask.span_stop)


def visible_share(mask: MaskIntervals, keys: int) -> jax.Array:
    """The share of all (query, key slot 0 ... keys - 1) pairs that the mask shows; a scalar."""

    def length(start: jax.Array, stop: jax.Array) -> jax.Array:
        return jnp.maximum(jnp.minimum(stop, keys) - jnp.maximum(start, 0), 0)

    seen = length(mask.context_start, mask.context_stop) + length(mask.span_start, mask.span_stop)
    twice = length(
        jnp.maximum(mask.context_start, mask.span_start),
        jnp.minimum(mask.context_stop, mask.span_stop),
    )
    return jnp.mean((seen - twice) / keys)


def padding_mask(lengths: jax.Array, slots: int) -> MaskIntervals:
    """Rows of `slots` queries, each of which sees [0, length of its row). lengths: (B,)."""
    stop = jnp.broadcast_to(jnp.asarray(lengths, jnp.int32)[:, None], (len(lengths), slots))
    nothing = jnp.zeros_like(stop)
    return MaskIntervals(nothing, stop, nothing, nothing)
