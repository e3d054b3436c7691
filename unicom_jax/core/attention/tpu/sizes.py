"""The blocks of a call, and its cost."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from unicom_jax.core.attention.blocks import fitting_block

GROUP_BYTES = 2048  # per query, over the heads that are computed together; bounds VMEM


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of one call.

    Attributes:
      queries, keys: slots in a block.
      query_blocks, key_blocks: number of blocks.
      heads: query heads that are computed together.
      parts: number of such groups among the query heads of a key head.
    """

    batch: int
    kv_heads: int
    head_dim: int
    queries: int
    keys: int
    query_blocks: int
    key_blocks: int
    heads: int
    parts: int

    @property
    def all_heads(self) -> int:
        return self.batch * self.kv_heads * self.parts * self.heads

    def query_bytes(self, dtype: jnp.dtype) -> int:
        """Bytes of an array like q."""
        slots = self.queries * self.query_blocks
        return self.all_heads * slots * self.head_dim * dtype.itemsize

    def key_bytes(self, dtype: jnp.dtype) -> int:
        """Bytes of an array like k."""
        slots = self.keys * self.key_blocks
        return self.batch * self.kv_heads * slots * self.head_dim * dtype.itemsize

    def cost(self, products: int, nbytes: int) -> pl.CostEstimate:
        """Cost of a pass with `products` products per query-key pair, as if every block were seen:
        the mask decides which blocks are seen only when the program runs."""
        pairs = self.queries * self.query_blocks * self.keys * self.key_blocks * self.all_heads
        return pl.CostEstimate(
            flops=2 * products * pairs * self.head_dim,
            transcendentals=pairs,
            bytes_accessed=nbytes,
        )


def sizes_of(q: jax.Array, k: jax.Array, blocks: tuple[int, int] | None) -> Sizes:
    batch, queries, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1:3]
    of_queries, of_keys = blocks or (fitting_block(queries), fitting_block(keys))
    group = heads // kv_heads
    most = max(GROUP_BYTES // (head_dim * q.dtype.itemsize), 1)
    together = max(n for n in range(1, group + 1) if group % n == 0 and n <= most)
    return Sizes(
        batch, kv_heads, head_dim, of_queries, of_keys, pl.cdiv(queries, of_queries),
        pl.cdiv(keys, of_keys), together, group // together,
    )  # fmt: skip
