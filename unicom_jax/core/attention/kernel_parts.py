"""What the kernels for TPU and for GPUs share, inside a kernel and around it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unicom_jax.core.attention.online import LOWEST
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.precision import precision_of

START = LOWEST / 2  # first running maximum: above hidden scores, so that their weights are 0


def product(a: jax.Array, b: jax.Array, over: tuple[int, int]) -> jax.Array:
    """a b, summed over these axes of the two matrices, in fp32."""
    return jax.lax.dot_general(
        a,
        b,
        (((over[0],), (over[1],)), ((), ())),
        precision=precision_of(a.dtype),
        preferred_element_type=jnp.float32,
    )


def like(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def filled_mask(mask: MaskIntervals, slots: int) -> MaskIntervals:
    """The mask padded to `slots` queries; those added see nothing."""
    more = slots - mask.context_start.shape[1]
    return jax.tree.map(lambda bound: jnp.pad(bound, ((0, 0), (0, more))), mask)
