"""Padded rows of image tokens: which slots are real and where on the image they stand."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def token_mask(grids: Int[Array, "*B 2"], tokens: int) -> Bool[Array, "*B {tokens}"]:
    """True at slots that hold a token of an image of `grids` rows and columns."""
    return jnp.arange(tokens) < (grids[..., 0] * grids[..., 1])[..., None]


def token_places(grids: Int[Array, "*B 2"], tokens: int) -> Int[Array, "*B {tokens} 2"]:
    """Row and column of each slot in raster order; padding gets places past the end."""
    columns = jnp.maximum(grids[..., 1, None], 1)  # an absent image has none
    slots = jnp.arange(tokens)
    return jnp.stack([slots // columns, slots % columns], axis=-1)
