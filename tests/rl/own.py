"""A reward that a user might write."""

from __future__ import annotations

import jax.numpy as jnp


def brightness(frozen, originals, samples):
    """Mean of the drawn picture, in [-1, 1]."""
    return jnp.mean(samples.patches, axis=(1, 2))
