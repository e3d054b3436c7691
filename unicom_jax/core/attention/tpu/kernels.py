"""The three kernels. Arguments refer to blocks in VMEM; `codes` is in scalar memory.

    forward     o = softmax(q k^T) v         for a block of queries, over blocks of keys
    queries     ds = w (do v^T - mean)       the same; dq = ds k
    keys        dk = ds^T q, dv = w^T do     for a block of keys, over heads and blocks of queries

Shapes: codes of all blocks (`blocks.with_fetches`); bounds (4, queries); q, out, gradient and dq
(heads, queries, channels); k, v, dk and dv (keys, channels); log_sum and mean (heads, queries).
Products take the inputs' dtype and give fp32; all else is fp32.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from unicom_jax.core.attention.blocks import PARTLY, WHOLE
from unicom_jax.core.attention.kernel_parts import START, product
from unicom_jax.core.attention.online import LOWEST
from unicom_jax.core.attention.tpu.sizes import Sizes


def _visible(bounds, block: jax.Array, sizes: Sizes) -> jax.Array:
    """(keys, queries) bool of a block of keys; bounds (4, queries)."""
    slots = jax.lax.broadcasted_iota(jnp.int32, (sizes.keys, sizes.queries), 0)
    slots += block * sizes.keys
    context = (bounds[0:1] <= slots) & (slots < bounds[1:2])
    return context | ((bounds[2:3] <= slots) & (slots < bounds[3:4]))


def _look(code: jax.Array, visible: Callable[[], jax.Array], step: Callable) -> None:
    """Runs `step(mask)` for a partly seen block, `step(None)` for a whole one, or nothing."""
    pl.when((code & 3) == PARTLY)(lambda: step(visible()))
    pl.when((code & 3) == WHOLE)(lambda: step(None))


def _hide(x: jax.Array, visible: jax.Array | None, value: float) -> jax.Array:
    return x if visible is None else jnp.where(visible, x, value)


def _weights_and_gradient(k, v, q, gradient, log_sum, mean, visible):
    """Weights of a block and the gradient of its scores, both (keys, queries) and fp32."""
    weights = _hide(jnp.exp(product(k, q, (1, 1)) - log_sum), visible, 0)
    return weights, weights * (product(v, gradient, (1, 1)) - mean)


def forward_kernel(codes, bounds, q, k, v, out, log_sum, seen, highest, total, *, sizes: Sizes):
    row, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _():
        highest[...] = jnp.full_like(highest, START)
        total[...] = jnp.zeros_like(total)
        seen[...] = jnp.zeros_like(seen)

    def step(visible):
        turned = v[...].T  # (channels, keys)
        for g in range(sizes.heads):
            one = slice(g, g + 1)
            scores = _hide(product(k[...], q[g], (1, 1)), visible, LOWEST)
            before = highest[one]
            highest[one] = jnp.maximum(before, jnp.max(scores, axis=0, keepdims=True))
            rescale = jnp.exp(before - highest[one])
            weights = jnp.exp(scores - highest[one])
            total[one] = total[one] * rescale + jnp.sum(weights, axis=0, keepdims=True)
            seen[g] = seen[g] * rescale + product(turned, weights.astype(v.dtype), (1, 0))

    code = codes[(row * sizes.query_blocks + i) * sizes.key_blocks + j]
    _look(code, lambda: _visible(bounds, j, sizes), step)

    @pl.when(j == sizes.key_blocks - 1)
    def _():
        safe = jnp.where(total[...] > 0, total[...], 1)  # queries that see nothing: 0 / 1
        log_sum[...] = highest[...] + jnp.log(safe)
        for g in range(sizes.heads):
            out[g] = (seen[g] / safe[g : g + 1]).T.astype(out.dtype)


def queries_kernel(codes, bounds, q, k, v, gradient, log_sum, mean, dq, summed, *, sizes: Sizes):
    row, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)

    @pl.when(j == 0)
    def _():
        summed[...] = jnp.zeros_like(summed)

    def step(visible):
        turned = k[...].T  # (channels, keys)
        for g in range(sizes.heads):
            rows = log_sum[g : g + 1], mean[g : g + 1]
            _, dscores = _weights_and_gradient(k[...], v[...], q[g], gradient[g], *rows, visible)
            summed[g] += product(turned, dscores.astype(k.dtype), (1, 0))

    code = codes[(row * sizes.query_blocks + i) * sizes.key_blocks + j]
    _look(code, lambda: _visible(bounds, j, sizes), step)

    @pl.when(j == sizes.key_blocks - 1)
    def _():
        for g in range(sizes.heads):
            dq[g] = summed[g].T.astype(dq.dtype)


def keys_kernel(
    codes, bounds, q, k, v, gradient, log_sum, mean, dk, dv, summed_k, summed_v, *, sizes: Sizes
):
    row, j, part, i = pl.program_id(0), pl.program_id(2), pl.program_id(3), pl.program_id(4)

    @pl.when((part == 0) & (i == 0))
    def _():
        summed_k[...] = jnp.zeros_like(summed_k)
        summed_v[...] = jnp.zeros_like(summed_v)

    def step(visible):
        for g in range(sizes.heads):
            rows = log_sum[g : g + 1], mean[g : g + 1]
            weights, dscores = _weights_and_gradient(
                k[...], v[...], q[g], gradient[g], *rows, visible
            )
            summed_v[...] += product(weights.astype(q.dtype), gradient[g], (1, 0))
            summed_k[...] += product(dscores.astype(q.dtype), q[g], (1, 0))

    code = codes[(row * sizes.key_blocks + j) * sizes.query_blocks + i]
    _look(code, lambda: _visible(bounds, j, sizes), step)

    @pl.when((part == sizes.parts - 1) & (i == sizes.query_blocks - 1))
    def _():
        dk[...] = summed_k[...].astype(dk.dtype)
        dv[...] = summed_v[...].astype(dv.dtype)
