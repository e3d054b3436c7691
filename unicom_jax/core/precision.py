"""Products of fp32 numbers that are fp32 on every platform.

By default JAX rounds the factors of an fp32 product to bfloat16 on a TPU and to TF32 on an H100.
Layers that may compute in low precision are given bfloat16 activations (`compute_dtype`). Layers
that are given fp32 must stay fp32: the compressor and its statistics, time embeddings, modulation,
the last layer of a decoder, and everything else if `compute_dtype` is float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def precision_of(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """The `precision` of products whose factors have this dtype."""
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
