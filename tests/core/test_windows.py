"""The order of windows, and attention inside them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core.attention import attention
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.windows import reorder, window_attention, window_order

# Whole windows, narrow ones, flat ones, a single row, a single column, no picture.
GRIDS = np.array([(4, 6), (3, 5), (5, 4), (1, 7), (7, 1), (0, 0), (2, 2)])
UNITS, SIDE = 26, 2


def expected(rows: int, columns: int) -> list[list[int]]:
    """Raster indices of the units of each window."""
    index = np.arange(rows * columns).reshape(rows, columns)
    return [
        index[y : y + SIDE, x : x + SIDE].ravel().tolist()
        for y in range(0, rows, SIDE)
        for x in range(0, columns, SIDE)
    ]


def test_units_of_a_window_follow_one_another():
    order = window_order(jnp.asarray(GRIDS), UNITS, SIDE)
    for row, grid in enumerate(GRIDS):
        windows = expected(*grid)
        units = [unit for window in windows for unit in window]
        padding = list(range(len(units), UNITS))
        assert order.source[row].tolist() == units + padding
        bounds = np.cumsum([0, *map(len, windows)])
        firsts = [start for start, one in zip(bounds, windows, strict=False) for _ in one]
        stops = [stop for stop, one in zip(bounds[1:], windows, strict=True) for _ in one]
        assert order.first[row].tolist() == firsts + [0] * len(padding)
        assert order.stop[row].tolist() == stops + [0] * len(padding)


def test_the_inverse_order_puts_every_unit_back():
    order = window_order(jnp.asarray(GRIDS), UNITS, SIDE)
    x = jax.random.normal(jax.random.key(0), (len(GRIDS), UNITS, 3))
    np.testing.assert_array_equal(reorder(reorder(x, order.source), order.place), x)


@pytest.mark.parametrize("reach", [4, 7])
def test_attention_in_blocks_equals_that_with_the_whole_mask(reach):
    """Windows of at most 4 slots, in blocks of 4, which they straddle, and of 7."""
    order = window_order(jnp.asarray(GRIDS), UNITS, SIDE)
    q, k, v = jax.random.normal(jax.random.key(1), (3, len(GRIDS), UNITS, 2, 4))
    nothing = jnp.zeros_like(order.first)

    def whole(q, k, v):
        return attention(q, k, v, MaskIntervals(order.first, order.stop, nothing, nothing))

    def blocks(q, k, v):
        return window_attention(q, k, v, order.first, order.stop, reach)

    for ours, theirs in zip(
        jax.vjp(blocks, q, k, v)[1](v), jax.vjp(whole, q, k, v)[1](v), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    np.testing.assert_allclose(blocks(q, k, v), whole(q, k, v), atol=1e-6)
