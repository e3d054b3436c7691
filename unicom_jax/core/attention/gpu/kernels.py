"""The three kernels. Arguments refer to one row and one head in main memory.

    forward     o = softmax(q k^T) v         for a block of queries, over blocks of keys
    queries     ds = w (do v^T - mean)       the same; dq = ds k
    keys        dk = ds^T q, dv = w^T do     for a block of keys, over heads and blocks of queries

Shapes: order (blocks,), counts (2,) as `calls` makes them; bounds (4, queries); q, out, gradient,
dq, k, v, dk and dv (slots, channels); log_sum and mean (queries,). Arrays that a program loops over
have all slots and, in the keys' kernel, a middle axis of query heads; every other array is one
block. Products take the inputs' dtype and give fp32; all else is fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from unicom_jax.core.attention.kernel_parts import START, product
from unicom_jax.core.attention.online import LOWEST


def _slots(first: jax.Array, keys: int) -> jax.Array:
    return first + jnp.arange(keys, dtype=jnp.int32)


def _visible(bounds, slots: jax.Array) -> jax.Array:
    """Which key slots are seen. `bounds`: four per query, along another axis than `slots`."""
    context = (bounds[0] <= slots) & (slots < bounds[1])
    return context | ((bounds[2] <= slots) & (slots < bounds[3]))


def _over_blocks(order, counts, step: Callable, carry: Any) -> Any:
    """`step(block, carry, masked)` over the whole blocks of a list, then over the others."""
    whole, seen = counts[0], counts[1]
    carry = jax.lax.fori_loop(0, whole, lambda n, carry: step(order[n], carry, False), carry)
    return jax.lax.fori_loop(whole, seen, lambda n, carry: step(order[n], carry, True), carry)


def forward_kernel(order, counts, bounds, q, k, v, out, log_sum, *, keys: int):
    mine, edges = q[...], [bounds[n][:, None] for n in range(4)]

    def step(j, carry, masked):
        highest, total, seen = carry
        here = pl.ds(j * keys, keys)
        scores = product(mine, k[here, :], (1, 1))
        if masked:
            scores = jnp.where(_visible(edges, _slots(j * keys, keys)[None]), scores, LOWEST)
        new = jnp.maximum(highest, jnp.max(scores, axis=1))
        rescale, weights = jnp.exp(highest - new), jnp.exp(scores - new[:, None])
        total = total * rescale + jnp.sum(weights, axis=1)
        seen = seen * rescale[:, None] + product(weights.astype(v.dtype), v[here, :], (1, 0))
        return new, total, seen

    queries = mine.shape[0]
    start = (
        jnp.full(queries, START, jnp.float32),
        jnp.zeros(queries, jnp.float32),
        jnp.zeros(mine.shape, jnp.float32),
    )
    highest, total, seen = _over_blocks(order, counts, step, start)
    total = jnp.where(total > 0, total, 1)  # queries that see nothing: 0 / 1
    log_sum[...] = highest + jnp.log(total)
    out[...] = (seen / total[:, None]).astype(out.dtype)


def _weights_and_gradient(for_scores, for_weights, log_sum, mean, visible):
    """Weights of a block and the gradient of its scores, fp32.

    `for_scores` holds q and k, `for_weights` the output's gradient and v. The results are
    (queries, keys) if each pair has the queries' array first, (keys, queries) otherwise.
    """
    weights = jnp.exp(product(*for_scores, (1, 1)) - log_sum)
    if visible is not None:
        weights = jnp.where(visible, weights, 0)
    return weights, weights * (product(*for_weights, (1, 1)) - mean)


def queries_kernel(order, counts, bounds, q, k, v, gradient, log_sum, mean, dq, *, keys: int):
    mine, edges = q[...], [bounds[n][:, None] for n in range(4)]
    given, sums, means = gradient[...], log_sum[...][:, None], mean[...][:, None]

    def step(j, summed, masked):
        here = pl.ds(j * keys, keys)
        theirs = k[here, :]
        visible = _visible(edges, _slots(j * keys, keys)[None]) if masked else None
        _, dscores = _weights_and_gradient(
            (mine, theirs), (given, v[here, :]), sums, means, visible
        )
        return summed + product(dscores.astype(k.dtype), theirs, (1, 0))

    summed = _over_blocks(order, counts, step, jnp.zeros(mine.shape, jnp.float32))
    dq[...] = summed.astype(dq.dtype)


def keys_kernel(
    order, counts, bounds, q, k, v, gradient, log_sum, mean, dk, dv, *, queries: int, heads: int
):
    my_keys, my_values = k[...], v[...]
    keys = my_keys.shape[0]
    slots = _slots(pl.program_id(0) * keys, keys)[:, None]

    def head(g, carry):
        def step(i, carry, masked):
            summed_k, summed_v = carry
            here = pl.ds(i * queries, queries)
            visible = None
            if masked:
                visible = _visible([bounds[n, here][None] for n in range(4)], slots)
            theirs, given = q[here, g, :], gradient[here, g, :]
            rows = log_sum[g, here][None], mean[g, here][None]
            weights, dscores = _weights_and_gradient(
                (my_keys, theirs), (my_values, given), *rows, visible
            )
            summed_v += product(weights.astype(q.dtype), given, (1, 0))
            summed_k += product(dscores.astype(q.dtype), theirs, (1, 0))
            return summed_k, summed_v

        return _over_blocks(order, counts, step, carry)

    zero = jnp.zeros(my_keys.shape, jnp.float32)
    summed_k, summed_v = jax.lax.fori_loop(0, heads, head, (zero, zero))
    dk[...] = summed_k.astype(dk.dtype)
    dv[...] = summed_v.astype(dv.dtype)
