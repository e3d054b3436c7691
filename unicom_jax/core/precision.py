"""Products of fp32 numbers that are fp32 everywhere.

By default JAX rounds the factors of an fp32 product on a TPU to bfloat16 and on an H100 to TF32. A
layer that is to compute so is given bfloat16 activations (`compute_dtype`). What is given fp32 has
to stay fp32: the compressor and its statistics, time embeddings, modulation, the last layer of a
decoder, and all else where `compute_dtype` is float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """For the `precision` of products whose factors have this dtype."""
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """`jnp.einsum` of two factors of one dtype, accumulated in fp32."""
    return jnp.einsum(
        equation,
        left,
        right,
        precision=precision_of(left.dtype),
        preferred_element_type=jnp.float32,
    )
