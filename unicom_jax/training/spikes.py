"""Gradient spikes: steps with a sudden large norm are made non-finite, so the optimiser skips them.

A step is a spike if its gradient norm is above `factor` times the usual norm: the median of the
last `WINDOW` steps or, if higher, that of the last `RECENT` steps. All of this happens inside the
compiled step, so no host waits for it. Skipping steps by their gradient norm is common for large
models (OLMo 2's spike score, PaLM's skipped batches). A median, unlike a mean, is not moved by the
few spikes that it should detect.

The short median ends the skipping when the norm has risen for good (other data, another phase of
training): rejected norms enter the window too, so after `RECENT` / 2 steps at the new level the
short median has reached it and steps are taken again. With the long median alone this would take
`WINDOW` / 2 steps, more than `max_skipped` allows by default.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

WINDOW = 64  # number of norms; until half of them are known, nothing counts as a spike
RECENT = 16  # number of newest norms; a lasting rise is skipped for half as many steps


def no_norms() -> jax.Array:
    """The window before the first step: infinite norms, so that their median is infinite too."""
    return jnp.full((WINDOW,), jnp.inf, jnp.float32)


def reject_spike(
    grads: Any, norm: jax.Array, norms: jax.Array, step: jax.Array, factor: float
) -> tuple[Any, jax.Array, jax.Array]:
    """(gradients, all NaN at a spike; norm / usual norm, 0 while unknown; window with `norm`).

    Spikes enter the window like other finite norms.

    Args:
      grads: tree of gradients with the global norm `norm`, ().
      norms: the last norms, (WINDOW,); the norm of step s is at index s modulo WINDOW.
      step: steps taken before this one, ().
    """
    newest = norms[(step - 1 - jnp.arange(min(RECENT, WINDOW))) % WINDOW]
    ratio = norm / jnp.maximum(_median(norms), _median(newest))
    spike = ratio > factor
    grads = jax.tree.map(lambda grad: jnp.where(spike, jnp.nan, grad), grads)
    place = step % WINDOW
    kept = jnp.where(jnp.isfinite(norm), norm, norms[place])
    return grads, ratio, norms.at[place].set(kept)


def _median(norms: jax.Array) -> jax.Array:
    """The upper median of (n,), which half of the norms suffice to raise."""
    return jnp.sort(norms)[len(norms) // 2]
