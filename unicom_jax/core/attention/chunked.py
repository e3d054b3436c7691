"""Attention in blocks of keys: the same result in O(S * block) memory.

The forward pass is the online softmax (Milakov & Gimelshein, arXiv:1805.02867): running maximum m,
sum l and output, rescaled when a block raises m. The backward pass recomputes every block's weights
(see `online`), so it never holds more than S x block scores either.

Letters: b batch, h key heads, g query heads per key head, s queries, t keys in a block, d channels.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from unicom_jax.core.attention.intervals import interval_mask
from unicom_jax.core.attention.online import LOWEST, attend
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.precision import product


def chunked_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: MaskIntervals | None,
    scale: float,
    block: int,
) -> jax.Array:
    """See `attention`; `block` keys at a time."""
    passes = partial(forward, block=block), partial(backward, block=block)
    return attend(*passes, q, k, v, mask, scale)


def _group(x: jax.Array, kv_heads: int) -> jax.Array:
    """(B, S, H, D) -> (B, K, G, S, D)."""
    batch, queries, heads, head_dim = x.shape
    x = x.reshape(batch, queries, kv_heads, heads // kv_heads, head_dim)
    return x.transpose(0, 2, 3, 1, 4)


def _ungroup(x: jax.Array) -> jax.Array:
    """(B, K, G, S, D) -> (B, S, H, D)."""
    batch, kv_heads, group, queries, head_dim = x.shape
    return x.transpose(0, 3, 1, 2, 4).reshape(batch, queries, kv_heads * group, head_dim)


def _split(x: jax.Array, block: int) -> jax.Array:
    """(B, T, K, D) -> (blocks, B, K, block, D), padded with zeros."""
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)))
    x = x.reshape(x.shape[0], -1, block, *x.shape[2:])
    return x.transpose(1, 0, 3, 2, 4)


def _join(x: jax.Array, keys: int) -> jax.Array:
    """(blocks, B, K, block, D) -> (B, T, K, D), without the padding of the last block."""
    x = x.transpose(1, 0, 3, 2, 4)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :keys]


def _firsts(k: jax.Array) -> jax.Array:
    """The first key slot of every block of k (blocks, B, K, block, D)."""
    return jnp.arange(k.shape[0], dtype=jnp.int32) * k.shape[3]


def _visible(mask: MaskIntervals, first: jax.Array, k: jax.Array) -> jax.Array:
    return interval_mask(mask, k.shape[-2], first)[:, None, None]


def forward(
    q: jax.Array, k: jax.Array, v: jax.Array, mask: MaskIntervals, block: int
) -> tuple[jax.Array, jax.Array]:
    """An `online.Forward`."""
    block = min(block, k.shape[1])
    q, dtype = _group(q, k.shape[2]), q.dtype
    k, v = _split(k, block), _split(v, block)

    def step(carry, block):
        maximum, total, out = carry
        first, k, v = block
        visible = _visible(mask, first, k)
        scores = jnp.where(visible, product("bhgsd,bhtd->bhgst", q, k), LOWEST)
        new_maximum = jnp.maximum(maximum, jnp.max(scores, axis=-1))
        rescale = jnp.exp(maximum - new_maximum)
        weights = jnp.where(visible, jnp.exp(scores - new_maximum[..., None]), 0)
        total = total * rescale + jnp.sum(weights, axis=-1)
        seen = product("bhgst,bhtd->bhgsd", weights.astype(v.dtype), v)
        return (new_maximum, total, out * rescale[..., None] + seen), None

    start = (
        jnp.full(q.shape[:-1], LOWEST, jnp.float32),
        jnp.zeros(q.shape[:-1], jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    (maximum, total, out), _ = jax.lax.scan(step, start, (_firsts(k), k, v))
    total = jnp.where(total > 0, total, 1)  # rows that see nothing: 0 / 1
    out = _ungroup(out / total[..., None]).astype(dtype)
    log_sum = maximum + jnp.log(total)
    return out, log_sum.reshape(log_sum.shape[0], -1, log_sum.shape[-1])


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: MaskIntervals,
    log_sum: jax.Array,
    mean: jax.Array,
    gradient: jax.Array,
    block: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """An `online.Backward`."""
    keys, block = k.shape[1], min(block, k.shape[1])
    q, gradient = (_group(x, k.shape[2]) for x in (q, gradient))
    k, v = _split(k, block), _split(v, block)
    log_sum, mean = (x.reshape(*q.shape[:-1], 1) for x in (log_sum, mean))

    def step(dq, block):
        first, k, v = block
        scores = product("bhgsd,bhtd->bhgst", q, k)
        weights = jnp.where(_visible(mask, first, k), jnp.exp(scores - log_sum), 0)
        dweights = product("bhgsd,bhtd->bhgst", gradient, v)
        dscores = (weights * (dweights - mean)).astype(q.dtype)
        dv = product("bhgst,bhgsd->bhtd", weights.astype(q.dtype), gradient)
        dk = product("bhgst,bhgsd->bhtd", dscores, q)
        dq = dq + product("bhgst,bhtd->bhgsd", dscores, k)
        return dq, (dk.astype(k.dtype), dv.astype(v.dtype))

    dq, (dk, dv) = jax.lax.scan(step, jnp.zeros(q.shape, jnp.float32), (_firsts(k), k, v))
    return _ungroup(dq.astype(q.dtype)), _join(dk, keys), _join(dv, keys)
