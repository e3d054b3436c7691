"""Attention as Pallas kernels for TPU: scores live in VMEM only (Dao, arXiv:2307.08691).

Each kernel goes through blocks of queries and keys; blocks that `blocks.block_states` knows to be
hidden are neither computed nor fetched, and whole ones need no mask. Query heads of one key head
are computed together, as many as fit, so that keys and mask are there once for all of them.

Scores stand keys x queries. What belongs to a query (its four bounds, maximum, sum, log-sum-exp) is
then a row along the lanes, 4 bytes a query, and maxima and sums run over sublanes, which is cheap;
outputs are summed up channels x queries and turned once, at the end.
"""

from unicom_jax.core.attention.tpu.calls import backward, forward

__all__ = ["backward", "forward"]
