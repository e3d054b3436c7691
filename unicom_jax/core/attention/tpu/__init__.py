"""Attention as Pallas kernels for TPU: scores stay in VMEM (Dao, arXiv:2307.08691).

Each kernel loops over blocks of queries and keys; blocks that `blocks.block_states` finds hidden
are neither computed nor fetched, and whole ones need no mask. As many query heads of one key head
as fit are computed together, so that keys and mask are loaded once for all of them.

Scores are laid out keys x queries. What belongs to a query (its four bounds, maximum, sum,
log-sum-exp) is then a row along the lanes, 4 bytes per query, and maxima and sums run over
sublanes, which is cheap. Outputs are summed as channels x queries and transposed once, at the end.
"""

from unicom_jax.core.attention.tpu.calls import backward, forward

__all__ = ["backward", "forward"]
