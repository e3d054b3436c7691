"""Attention in blocks of keys: the same numbers in memory O(S * block).

The forward pass is the online softmax (Milakov & Gimelshein, arXiv:1805.02867): running maximum m,
sum l and output, rescaled when a block raises m. The backward pass recomputes every block's weights
from the saved log-sum-exp (Dao et al., arXiv:2205.14135, algorithm 4), so it too never holds
more than S x block scores.

Letters: b batch, h key heads, g query heads per key head, s queries, t keys of a block, d channels.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from unicom_jax.core.attention.intervals import interval_mask, padding_mask
from unicom_jax.core.batch import MaskIntervals

# Starting point of the running maximum: below every score, finite so that m - m is 0.
LOWEST = -1e30


def chunked_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: MaskIntervals | None,
    scale: float,
    block: int,
) -> jax.Array:
    """See `attention`; `block` keys at a time."""
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    if mask is None:
        mask = padding_mask(jnp.full(batch, keys), queries)
    # The last block is filled up with slots >= keys: no interval may reach there.
    mask = jax.tree.map(lambda bound: jnp.minimum(bound, keys), mask)
    block = min(block, keys)
    q = (q * scale).reshape(batch, queries, kv_heads, heads // kv_heads, head_dim)
    out = _attend(q.transpose(0, 2, 3, 1, 4), _split(k, block), _split(v, block), mask)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, head_dim).astype(q.dtype)


def _split(x: jax.Array, block: int) -> jax.Array:
    """(B, T, K, D) -> (blocks, B, K, block, D), filled up with zeros."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)))
    x = x.reshape(x.shape[0], -1, block, *x.shape[2:])
    return x.transpose(1, 0, 3, 2, 4)


def _firsts(k: jax.Array) -> jax.Array:
    """The first key slot of every block of k (blocks, B, K, block, D)."""
    return jnp.arange(k.shape[0], dtype=jnp.int32) * k.shape[3]


_product = partial(jnp.einsum, preferred_element_type=jnp.float32)


def _visible(mask: MaskIntervals, first: jax.Array, k: jax.Array) -> jax.Array:
    return interval_mask(mask, k.shape[-2], first)[:, None, None]


@jax.custom_vjp
def _attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: MaskIntervals) -> jax.Array:
    """q (B, K, G, S, D), blocks of k and v (blocks, B, K, block, D) -> (B, K, G, S, D) fp32."""
    return _forward(q, k, v, mask)[0]


def _forward(q: jax.Array, k: jax.Array, v: jax.Array, mask: MaskIntervals):
    def step(carry, block):
        maximum, total, out = carry
        first, k, v = block
        visible = _visible(mask, first, k)
        scores = jnp.where(visible, _product("bhgsd,bhtd->bhgst", q, k), LOWEST)
        new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=-1))
        rescale = jnp.exp(maximum - new_maximum)
        weights = jnp.where(visible, jnp.exp(scores - new_maximum[..., None]), 0)
        total = total * rescale + jnp.sum(weights, axis=-1)
        seen = _product("bhgst,bhtd->bhgsd", weights.astype(v.dtype), v)
        return (new_maximum, total, out * rescale[..., None] + seen), None

    start = (
        jnp.full(q.shape[:-1], LOWEST, jnp.float32),
        jnp.zeros(q.shape[:-1], jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    (maximum, total, out), _ = jax.lax.scan(step, start, (_firsts(k), k, v))
    total = jnp.where(total > 0, total, 1)  # rows that see nothing: 0 / 1
    out = out / total[..., None]
    return out, (q, k, v, mask, out, maximum + jnp.log(total))


def _backward(residuals, gradient: jax.Array):
    q, k, v, mask, out, log_sum = residuals
    # sum_j w_j dw_j of the softmax's gradient w * (dw - sum_j w_j dw_j), without the weights w.
    mean = jnp.sum(out * gradient, axis=-1, keepdims=True)
    gradient = gradient.astype(q.dtype)

    def step(dq, block):
        first, k, v = block
        scores = _product("bhgsd,bhtd->bhgst", q, k)
        weights = jnp.exp(scores - log_sum[..., None])
        weights = jnp.where(_visible(mask, first, k), weights, 0)
        dweights = _product("bhgsd,bhtd->bhgst", gradient, v)
        dscores = (weights * (dweights - mean)).astype(q.dtype)
        dv = _product("bhgst,bhgsd->bhtd", weights.astype(q.dtype), gradient)
        dk = _product("bhgst,bhgsd->bhtd", dscores, q)
        dq = dq + _product("bhgst,bhtd->bhgsd", dscores, k)
        return dq, (dk.astype(k.dtype), dv.astype(v.dtype))

    dq, (dk, dv) = jax.lax.scan(step, jnp.zeros(q.shape, jnp.float32), (_firsts(k), k, v))
    return dq.astype(q.dtype), dk, dv, None


_attend.defvjp(_forward, _backward)
