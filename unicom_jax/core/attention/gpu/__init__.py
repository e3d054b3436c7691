"""Attention as Pallas kernels for NVIDIA GPUs, through Triton: scores stay in registers.

Like `attention.tpu`, after Dao (arXiv:2307.08691), but adapted to GPUs: a program has one block of
queries (or keys) and loops over a list of the blocks that it sees, whole ones first. What other
programs have read is found in the cache.

JAX 0.11 and 0.12 compile Pallas through Triton and announce that a later version will not; then
these kernels have to move to Pallas' Mosaic backend. So setup.py excludes JAX 0.13.
"""

from unicom_jax.core.attention.gpu.calls import backward, forward

__all__ = ["backward", "forward"]
