"""The value range of pixels on the device."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, UInt8


def to_unit(pixels: UInt8[Array, "*shape"]) -> Float32[Array, "*shape"]:
    """0..255 to -1..1, the range of SigLIP and of the pixel decoder."""
    return pixels.astype(jnp.float32) / 127.5 - 1.0


def to_bytes(values: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """-1..1 to 0..255, clipped and rounded to the nearest level."""
    return jnp.round(jnp.clip(values + 1.0, 0.0, 2.0) * 127.5).astype(jnp.uint8)
