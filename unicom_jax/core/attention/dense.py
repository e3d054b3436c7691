"""The plain backend: all S x T scores at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unicom_jax.core.attention.intervals import interval_mask, sees_something
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.precision import product

HIDDEN = -1e30  # a score of softmax weight 0; finite, so that inf - inf cannot give NaN


def dense_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: MaskIntervals | None, scale: float
) -> jax.Array:
    """See `attention`; memory O(S * T)."""
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    # Batch axes first: plain batched products, which the CPU computes a fifth faster.
    q = (q * scale).reshape(batch, queries, kv_heads, heads // kv_heads, head_dim)
    q, k, v = q.transpose(0, 2, 3, 1, 4), k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)

    scores = product("bhgsd,bhtd->bhgst", q, k)
    if mask is not None:
        scores = jnp.where(interval_mask(mask, keys)[:, None, None], scores, HIDDEN)
    # The softmax is divided by its sum only after the product with v: that divides S x D numbers
    # instead of S x T, and keeps one S x T array for the gradient instead of two.
    highest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    out = product("bhgst,bhtd->bhgsd", weights.astype(v.dtype), v)
    out = (out / total).astype(v.dtype)

    out = out.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, head_dim)
    if mask is not None:
        # The softmax of a row that sees nothing is uniform, not zero.
        out = jnp.where(sees_something(mask, keys)[..., None, None], out, 0)
    return out
