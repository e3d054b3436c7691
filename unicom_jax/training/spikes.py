"""Steps whose gradient norm jumps: they are made non-finite, so that the optimiser skips them.

A step is a spike when its gradient norm is above `factor` times the median of the norms of the
last `WINDOW` steps. All of it happens inside the compiled step, so no host waits for it. Leaving
out steps by their gradient norm is common for large models (OLMo 2's spike score, PaLM's skipped
batches); the median, unlike a mean, is not moved by the spikes that it is to find.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

WINDOW = 64  # norms; until half of them are known, nothing counts as a spike


def no_norms() -> jax.Array:
    """The window before the first step: infinite norms, so that their median is infinite too."""
    return jnp.full((WINDOW,), jnp.inf, jnp.float32)


def reject_spike(
    grads: Any, norm: jax.Array, norms: jax.Array, step: jax.Array, factor: float
) -> tuple[Any, jax.Array, jax.Array]:
    """(gradients, all NaN at a spike; norm over median, 0 while unknown; the window with `norm`).

    Spikes enter the window like other finite norms: a level that stays is the new normal once it
    is half of the window, if training gets that far.

    Args:
      grads: tree of gradients with the global norm `norm`, ().
      norms: the last norms, (WINDOW,); step s lies at s modulo WINDOW.
      step: steps taken before this one, ().
    """
    ratio = norm / jnp.sort(norms)[WINDOW // 2]
    spike = ratio > factor
    grads = jax.tree.map(lambda grad: jnp.where(spike, jnp.nan, grad), grads)
    place = step % WINDOW
    kept = jnp.where(jnp.isfinite(norm), norm, norms[place])
    return grads, ratio, norms.at[place].set(kept)
