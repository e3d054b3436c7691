"""Padded rows of image tokens: which slots are real and where on the image they stand."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def token_mask(grids: jax.Array, tokens: int) -> jax.Array:
    """(B, N) bool, true at slots that hold a token of an image of `grids` (B, 2) rows, columns."""
    return jnp.arange(tokens) < (grids[:, 0] * grids[:, 1])[:, None]


def token_places(grids: jax.Array, tokens: int) -> jax.Array:
    """(B, N, 2) row and column of each slot in raster order; padding gets places past the end."""
    columns = jnp.maximum(grids[:, 1, None], 1)  # an absent image has none
    slots = jnp.arange(tokens)
    return jnp.stack([slots // columns, slots % columns], axis=-1)
