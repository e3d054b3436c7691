"""Attention inside square windows of padded pictures, at a cost linear in their size.

The units of a picture (patches, or small squares of them) are reordered so that each window's are
consecutive. A 3 x 5 grid in windows of 2 x 2, whose last ones are smaller:

    raster   0  1 | 2  3 | 4        window order   0 1 5 6 | 2 3 7 8 | 4 9 | 10 11 | 12 13 | 14
             5  6 | 7  8 | 9
            ------+------+---
            10 11 |12 13 |14

Then each query sees one interval of keys, of at most the size of a whole window. That interval is
in the query's own block of as many slots or in the two next to it, so a block of queries meets
three blocks of keys.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from unicom_jax.core.attention import attention
from unicom_jax.core.batch import MaskIntervals


@flax.struct.dataclass
class WindowOrder:
    """The window order of padded rows of N units; padding stays where it is.

    Attributes:
      source: the raster index of the unit in each slot of the window order.
      place: the inverse: the slot of each unit.
      first, stop: the slots of the window that each slot belongs to; 0, 0 at padding.
    """

    source: Int[Array, "B N"]
    place: Int[Array, "B N"]
    first: Int[Array, "B N"]
    stop: Int[Array, "B N"]


def window_order(grids: Int[Array, "B 2"], units: int, side: int) -> WindowOrder:
    """The order of windows of `side` x `side` units for pictures of (rows, columns) units.

    Args:
      grids: rows * columns <= units; (0, 0): no picture.
    """
    rows, columns = grids[:, :1], jnp.maximum(grids[:, 1:], 1)
    slot = jnp.arange(units)[None]
    inside = slot < grids[:, :1] * grids[:, 1:]
    band, in_band = slot // (side * columns), slot % (side * columns)
    height = jnp.clip(rows - side * band, 1, side)  # the last band and column may be smaller
    across = in_band // (side * height)
    width = jnp.clip(columns - side * across, 1, side)
    index = in_band - across * side * height  # in the window
    source = (side * band + index // width) * columns + side * across + index % width
    source = jnp.where(inside, source, slot)
    first = jnp.where(inside, slot - index, 0)
    stop = jnp.where(inside, slot - index + height * width, 0)
    return WindowOrder(source, jnp.argsort(source, axis=1), first, stop)


def reorder(x: Shaped[Array, "B N C"], index: Int[Array, "B N"]) -> Shaped[Array, "B N C"]:
    """Slot n of the result is slot index[n] of x."""
    return jnp.take_along_axis(x, index[..., None], axis=1)


def window_attention(
    q: Float[Array, "B S H D"],
    k: Float[Array, "B S K D"],
    v: Float[Array, "B S K D"],
    first: Int[Array, "B S"],
    stop: Int[Array, "B S"],
    reach: int,
) -> Float[Array, "B S H D"]:
    """Attention in which query s sees the keys first[s] <= j < stop[s] only, s among them.

    Args:
      reach: the most keys that a query sees. Wider intervals would lose keys.
    """
    batch, slots = first.shape
    blocks = -(-slots // reach)

    def split(x: jax.Array) -> jax.Array:
        padding = ((0, 0), (0, blocks * reach - slots), *((0, 0),) * (x.ndim - 2))
        return jnp.pad(x, padding).reshape(batch, blocks, reach, *x.shape[2:])

    def with_neighbours(x: jax.Array) -> jax.Array:
        wide = jnp.pad(split(x), ((0, 0), (1, 1), *((0, 0),) * (x.ndim - 1)))
        joined = jnp.concatenate([wide[:, :-2], wide[:, 1:-1], wide[:, 2:]], axis=2)
        return joined.reshape(batch * blocks, 3 * reach, *x.shape[2:])

    origin = reach * (jnp.arange(blocks) - 1)[:, None]  # the slot of a block's first key

    def bounds(x: jax.Array) -> jax.Array:
        return (split(x) - origin).reshape(batch * blocks, reach)

    nothing = jnp.zeros((batch * blocks, reach), jnp.int32)
    mask = MaskIntervals(bounds(first), bounds(stop), nothing, nothing)
    queries = split(q).reshape(batch * blocks, reach, *q.shape[2:])
    seen = attention(queries, with_neighbours(k), with_neighbours(v), mask)
    return seen.reshape(batch, blocks * reach, *q.shape[2:])[:, :slots]
