"""The plain backend: all S x T scores at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unicom_jax.core.attention.intervals import interval_mask, sees_something
from unicom_jax.core.batch import MaskIntervals

HIDDEN = -1e30  # a score that no softmax can see; finite, so that no NaN arises from inf - inf


def dense_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: MaskIntervals | None, scale: float
) -> jax.Array:
    """See `attention`; memory O(S * T)."""
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    groups = heads // kv_heads
    # Batch axes first and the query heads of a key head below each other: plain batched products,
    # which the CPU computes a fifth faster than products over strided axes.
    q = (q * scale).reshape(batch, queries, kv_heads, groups, head_dim)
    q = q.transpose(0, 2, 3, 1, 4).reshape(batch, kv_heads, groups * queries, head_dim)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)

    scores = jnp.einsum("bhqd,bhtd->bhqt", q, k, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, kv_heads, groups, queries, keys)
    if mask is not None:
        scores = jnp.where(interval_mask(mask, keys)[:, None, None], scores, HIDDEN)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    weights = weights.reshape(batch, kv_heads, groups * queries, keys)

    out = jnp.einsum("bhqt,bhtd->bhqd", weights, v)
    out = out.reshape(batch, kv_heads, groups, queries, head_dim).transpose(0, 3, 1, 2, 4)
    out = out.reshape(batch, queries, heads, head_dim)
    if mask is not None:
        # The softmax of a row that sees nothing is uniform, not zero.
        out = jnp.where(sees_something(mask, keys)[..., None, None], out, 0)
    return out
