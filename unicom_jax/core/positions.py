"""Rotary positions: of the unified model's sequence (`rope`), and one per axis (`axial_rope`).

In the sequence positions are generalised to two dimensions. Text at index p stands at (p, p); a
token of an image stands at its own row and column, around the diagonal point that the image's
middle token would have as text. Half of a head's frequencies turn with y and the other half with x,
in turns, so on pure text the rotation is RoPE (Su et al., arXiv:2104.09864) and weights trained
with it keep their meaning.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int32, Real

# Cosines and sines of the rotation angles; half = D / 2 of a head of D channels.
Turns = tuple[Float32[Array, "B S half"], Float32[Array, "B S half"]]


def rope(positions: Real[Array, "B S 2"], head_dim: int, theta: float) -> Turns:
    """(cos, sin) of the rotation angles. Even frequencies turn with y, odd ones with x.

    Args:
      positions: (y, x).
      head_dim: even number of channels of a head.
      theta: base; frequency i is theta ** (-2 i / head_dim).
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions turn pairs of channels; head_dim {head_dim} is odd")
    index = np.arange(head_dim // 2)
    frequencies = (theta ** (-2.0 * index / head_dim)).astype(np.float32)
    y, x = positions[..., :1].astype(jnp.float32), positions[..., 1:].astype(jnp.float32)
    angles = jnp.where(index % 2 == 0, y, x) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def axial_rope(
    places: Real[Array, "B S {len(dims)}"], dims: tuple[int, ...], theta: float
) -> Turns:
    """(cos, sin) for heads whose first `dims[0]` channels turn with axis 0, and so on.

    Args:
      places: a coordinate per axis.
      dims: even number of channels of each axis; they sum to the head's D.
      theta: base; frequency i of an axis of d channels is theta ** (-2 i / d).
    """
    if any(dim % 2 for dim in dims):
        raise ValueError(f"rotary positions turn pairs of channels; one of {dims} is odd")
    angles = [
        places[..., axis, None].astype(jnp.float32)
        * (theta ** (-2.0 * np.arange(dim // 2) / dim)).astype(np.float32)
        for axis, dim in enumerate(dims)
    ]
    angles = jnp.concatenate(angles, axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "B S H D"], cos: Float32[Array, "B S D/2"], sin: Float32[Array, "B S D/2"]
) -> Float[Array, "B S H D"]:
    """Turns channel pairs (i, i + D/2) of x, as Qwen does."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate(_turn(first, second, cos, sin), axis=-1).astype(x.dtype)


def apply_paired_rope(
    x: Float[Array, "B S H D"], cos: Float32[Array, "B S D/2"], sin: Float32[Array, "B S D/2"]
) -> Float[Array, "B S H D"]:
    """Turns channel pairs (2i, 2i + 1) of x, as FLUX does."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    turned = jnp.stack(_turn(pairs[..., 0], pairs[..., 1], cos, sin), axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def _turn(
    first: jax.Array, second: jax.Array, cos: jax.Array, sin: jax.Array
) -> tuple[jax.Array, jax.Array]:
    cos, sin = cos[:, :, None], sin[:, :, None]
    return first * cos - second * sin, second * cos + first * sin


def image_positions(start: int, rows: int, cols: int) -> Int32[np.ndarray, "{rows*cols} 2"]:
    """(y, x) of an image whose first token has text index `start`.

    y = start + (n - rows) // 2 + row, x = start + (n - cols) // 2 + column, with n = rows * cols:
    the image takes n indices, the text behind it goes on at start + n.
    """
    tokens = rows * cols
    row, column = np.divmod(np.arange(tokens), cols)
    y = start + (tokens - rows) // 2 + row
    x = start + (tokens - cols) // 2 + column
    return np.stack([y, x], axis=-1).astype(np.int32)
