"""Attention whose scores never leave the chip, on platforms that have a kernel for it.

The platform is known when a program is lowered, not when it is traced: a plan compiles for devices
that are not present. On other platforms (CPU, AMD's GPUs) the same two passes are the chunked
backend's, so a configuration trains and samples anywhere.

JAX ships kernels too, but none takes intervals. Its splash attention for TPU takes a data-dependent
mask only as an S x S array; its Triton kernel takes whole segments; cuDNN's takes an S x S bias.
"""

from __future__ import annotations

from functools import partial

import jax

from unicom_jax.core.attention import chunked, gpu, tpu
from unicom_jax.core.attention.online import attend
from unicom_jax.core.batch import MaskIntervals

FEW = 128  # fewer queries do not fill a block: a decoding step, a short text


def fused_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: MaskIntervals | None,
    scale: float,
    block: int,
) -> jax.Array:
    """See `attention`; without a kernel, `block` keys at a time."""
    passes = partial(chunked.forward, block=block), partial(chunked.backward, block=block)
    if q.shape[1] >= FEW:
        passes = (
            partial(_by_platform, tpu=tpu.forward, cuda=gpu.forward, default=passes[0]),
            partial(_by_platform, tpu=tpu.backward, cuda=gpu.backward, default=passes[1]),
        )
    return attend(*passes, q, k, v, mask, scale)


def _by_platform(*arrays, **passes):
    return jax.lax.platform_dependent(*arrays, **passes)
