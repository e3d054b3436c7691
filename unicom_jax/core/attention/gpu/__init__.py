"""Attention as Pallas kernels for NVIDIA GPUs, by Triton: scores live in registers only.

As `attention.tpu`, after Dao (arXiv:2307.08691), with what GPUs do otherwise: a program has one
block of queries (or keys), loops over the blocks that it sees by a list, whole ones first, and
finds what other programs have read in the cache.
"""

from unicom_jax.core.attention.gpu.calls import backward, forward

__all__ = ["backward", "forward"]
