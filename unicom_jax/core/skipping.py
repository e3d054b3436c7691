"""Rows of a batch that need not be computed: moved to the end, and skipped there.

Batches have places for more pictures than a row usually holds. A network that is dear a picture
need not run on places that are empty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from unicom_jax.core.activations import current_mesh


def on_present(
    run: Callable[..., Any], weights: Any, arrays: Any, present: Bool[Array, " B"], chunk: int
) -> Any:
    """`run(weights, arrays)` of the rows that are present; 0 in others.

    Present rows are moved to the front, and chunks without any are not computed, in the backward
    pass neither. Only a device that has all rows can do so.

    Args:
      run: of a tree of arrays of some rows, to a tree of arrays of as many, row by row.
      arrays: a tree of arrays (B, ...).
      chunk: rows computed at once.

    Raises:
      ValueError: a mesh of several devices is set.
    """
    if current_mesh() is not None:
        raise ValueError(
            f"pictures_at_once={chunk} skips pictures on one device only; set it to 0 for a mesh "
            "of several"
        )
    rows = len(present)
    chunk = min(chunk, rows)
    order = jnp.argsort(~present, stable=True)

    def chunked(x: jax.Array) -> jax.Array:
        """(B, ...) -> (chunks, chunk, ...), zeros behind the last row."""
        x = jnp.pad(x[order], [(0, -rows % chunk)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(-1, chunk, *x.shape[1:])

    def step(_: None, piece: tuple[jax.Array, Any]) -> tuple[None, Any]:
        here, some = piece
        shapes = jax.eval_shape(run, weights, some)

        def compute(some: Any) -> Any:
            found = run(weights, some)
            mask = jax.tree.map(lambda x: here.reshape(-1, *[1] * (x.ndim - 1)), found)
            return jax.tree.map(lambda x, real: jnp.where(real, x, 0), found, mask)

        def skip(some: Any) -> Any:
            del some
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        return None, jax.lax.cond(jnp.any(here), compute, skip, some)

    _, found = jax.lax.scan(step, None, (chunked(present), jax.tree.map(chunked, arrays)))
    back = jnp.argsort(order)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[back], found)
