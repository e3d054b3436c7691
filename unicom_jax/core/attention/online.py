"""The gradient rule shared by the backends that never hold all scores: one rule, two passes.

A forward pass gives the output and each query's log-sum-exp; from these a backward pass computes
the weights again, block by block (Dao et al., arXiv:2205.14135, algorithm 4). The mean, one number
per query and head (B, H, S), is computed here, the same way for all backends. How a pass visits its
blocks is up to the backend.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from unicom_jax.core.attention.intervals import padding_mask
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.remat import ATTENDED

# A hidden score: below all others, and finite so that a difference of two is 0 and not NaN.
LOWEST = -1e30

# (q, k, v, mask) -> output like q, fp32 log-sum-exp (B, H, S). q is already scaled; no interval
# extends past the last key; a query that sees nothing has output 0 and any finite log-sum-exp.
Forward = Callable[..., tuple[jax.Array, jax.Array]]
# (q, k, v, mask, log-sum-exp, mean, gradient of the output) -> gradients like q, k, v.
Backward = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


def attend(
    forward: Forward,
    backward: Backward,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: MaskIntervals | None,
    scale: float,
) -> jax.Array:
    """See `attention`; computed by these two passes."""
    batch, queries = q.shape[:2]
    keys = k.shape[1]
    if mask is None:
        mask = padding_mask(jnp.full(batch, keys), queries)
    # Blocks may be padded with slots >= keys: no interval may reach them.
    mask = jax.tree.map(lambda bound: jnp.minimum(bound, keys), mask)
    return _attend(forward, backward, q * scale, k, v, mask)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(forward, backward, q, k, v, mask):
    return forward(q, k, v, mask)[0]


def _keep(forward, backward, q, k, v, mask):
    out, log_sum = (checkpoint_name(x, ATTENDED) for x in forward(q, k, v, mask))
    return out, (q, k, v, mask, out, log_sum)


def _differentiate(forward, backward, kept, gradient):
    q, k, v, mask, out, log_sum = kept
    # sum_j w_j dw_j in the softmax's gradient w * (dw - sum_j w_j dw_j), without the weights w.
    mean = jnp.sum(out.astype(jnp.float32) * gradient, axis=-1).swapaxes(1, 2)
    return *backward(q, k, v, mask, log_sum, mean, gradient.astype(q.dtype)), None


_attend.defvjp(_keep, _differentiate)
