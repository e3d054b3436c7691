"""Padded rows of image tokens: which slots are real, their places on the image, and how windows of
neighbouring tokens are joined into one token and split again.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Shaped


def token_mask(grids: Int[Array, "*B 2"], tokens: int) -> Bool[Array, "*B {tokens}"]:
    """True at slots that hold a token of an image of `grids` rows and columns."""
    return jnp.arange(tokens) < (grids[..., 0] * grids[..., 1])[..., None]


def token_places(grids: Int[Array, "*B 2"], tokens: int) -> Int[Array, "*B {tokens} 2"]:
    """Row and column of each slot in raster order; padding gets places past the end."""
    columns = jnp.maximum(grids[..., 1, None], 1)  # an absent image has no columns
    slots = jnp.arange(tokens)
    return jnp.stack([slots // columns, slots % columns], axis=-1)


def join_windows(
    x: Shaped[Array, "B N C"], grids: Int[Array, "B 2"], side: int
) -> Shaped[Array, "B N/{side}**2 C*{side}**2"]:
    """Joins the tokens of each side x side window into one, in the order (row, column, channel).

    Padding may hold any token of the image. Raises ValueError where `side`² does not divide N or
    windows do not fill an image (under jit, where grids are unknown, the image becomes NaN).
    """
    if side == 1:
        return x
    batch, tokens, channels = x.shape
    if tokens % side**2:
        raise ValueError(
            f"{tokens} token slots do not make windows of {side} x {side}; "
            f"pad images to a multiple of {side**2} tokens"
        )
    corner = side * token_places(grids // side, tokens // side**2)[..., None, None, :]
    rows = corner[..., 0] + jnp.arange(side)[:, None]  # (B, n, side, side)
    columns = corner[..., 1] + jnp.arange(side)
    source = (rows * grids[:, 1, None, None, None] + columns).reshape(batch, -1, 1)
    windows = jnp.take_along_axis(x, source, axis=1, mode="clip")
    return check_windows(windows.reshape(batch, -1, side**2 * channels), grids, side)


def split_windows(
    x: Shaped[Array, "B n C"], grids: Int[Array, "B 2"], side: int
) -> Shaped[Array, "B n*{side}**2 C/{side}**2"]:
    """Inverse of `join_windows`, with the same errors; `grids` are those before joining."""
    if side == 1:
        return x
    batch, windows, channels = x.shape
    tokens = windows * side**2
    x = check_windows(x, grids, side).reshape(batch, tokens, channels // side**2)
    row, column = jnp.moveaxis(token_places(grids, tokens), -1, 0)
    window = (row // side) * (grids[:, 1, None] // side) + column // side
    source = window * side**2 + (row % side) * side + column % side
    return jnp.take_along_axis(x, source[..., None], axis=1, mode="clip")


def check_windows(x: jax.Array, grids: jax.Array, side: int) -> jax.Array:
    """Raises for images that windows do not fill; under jit, where grids are unknown, returns NaN
    for them."""
    uneven = grids % side != 0
    if not isinstance(uneven, jax.core.Tracer) and np.any(uneven):
        bad = np.asarray(grids)[np.any(uneven, axis=1)][0]
        raise ValueError(
            f"a grid of {bad[0]} x {bad[1]} tokens does not fill windows of {side} x {side}; "
            f"resize images so that both sides are multiples of {side} patches"
        )
    return jnp.where(jnp.any(uneven, axis=1)[:, None, None], jnp.nan, x)
