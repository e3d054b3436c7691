"""Which blocks of keys a block of queries sees, so that kernels can skip hidden blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unicom_jax.core.batch import MaskIntervals

PARTLY, WHOLE = 1, 2  # some pairs of a block may be seen / all are; 0: none


def fitting_block(slots: int) -> int:
    """The block size, 128 to 512 slots: large blocks run faster, small ones need less padding.

    A block is assumed to cost as much as its number of slots plus 64.
    """
    return min((512, 384, 256, 128), key=lambda size: -(-slots // size) * (size + 64))


def block_states(mask: MaskIntervals, keys: int, queries: int, block: int) -> jax.Array:
    """(B, S / queries, keys / block) int32: 0, `PARTLY` or `WHOLE`.

    Args:
      mask: fields (B, S).
      keys: number of keys, a multiple of `block`.
      queries, block: queries and keys in a block; S is a multiple of `queries`.
    """
    first = jnp.arange(0, keys, block, dtype=jnp.int32)
    last = first + block

    def meets(start: jax.Array, stop: jax.Array) -> jax.Array:
        return jnp.maximum(start[..., None], first) < jnp.minimum(stop[..., None], last)

    def covers(start: jax.Array, stop: jax.Array) -> jax.Array:
        return (start[..., None] <= first) & (last <= stop[..., None])

    def of_blocks(test) -> jax.Array:
        found = test(mask.context_start, mask.context_stop)
        found |= test(mask.span_start, mask.span_stop)
        return found.reshape(found.shape[0], -1, queries, found.shape[-1])

    some, every = of_blocks(meets).any(2), of_blocks(covers).all(2)
    return some.astype(jnp.int32) + every.astype(jnp.int32)


def with_fetches(states: jax.Array) -> jax.Array:
    """States along the last axis as 4 * (block to hold in fast memory) + state, in one flat row.

    For a hidden block, the block to hold is the last visible one before it, or else the first
    visible one: an index that does not change moves no data.
    """
    places = jnp.arange(states.shape[-1], dtype=jnp.int32)
    last = jax.lax.cummax(jnp.where(states > 0, places, -1), axis=states.ndim - 1)
    first = jnp.argmax(states > 0, axis=-1, keepdims=True).astype(jnp.int32)
    return (4 * jnp.where(last < 0, first, last) + states).reshape(-1)
