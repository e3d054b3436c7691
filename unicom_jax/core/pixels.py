"""The value range of pixels on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def to_unit(pixels: jax.Array) -> jax.Array:
    """uint8 0..255 to fp32 -1..1, the range of SigLIP and of the pixel decoder."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def to_bytes(values: jax.Array) -> jax.Array:
    """-1..1 to uint8, clipped and rounded to the nearest level."""
    return jnp.round(jnp.clip(values + 1.0, 0.0, 2.0) * 127.5).astype(jnp.uint8)
