"""Weights as training leaves them, for any module."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from unicom_jax.core.module import Module, Params


def trained(module: Module) -> Params:
    """No gate or bias is zero and no scale one. Drawn by NumPy, so that nothing is compiled."""
    draw = np.random.default_rng(2).standard_normal
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * draw(leaf.shape), leaf.dtype), module.abstract()
    )
