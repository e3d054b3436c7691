"""Squares of neighbouring tokens, joined and separated again by each picture's own raster."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core.grids import join_windows, split_windows

GRIDS = np.array([[4, 4], [2, 6], [6, 2], [0, 0]], np.int32)
TOKENS = jnp.asarray(np.random.default_rng(0).standard_normal((4, 16, 3)), jnp.float32)


@pytest.mark.parametrize("side", [1, 2])
def test_joining_and_separating_are_inverses(side):
    joined = join_windows(TOKENS, GRIDS, side)
    assert joined.shape == (4, 16 // side**2, 3 * side**2)
    back = split_windows(joined, GRIDS, side)
    for row, (rows, columns) in enumerate(GRIDS):
        real = slice(0, rows * columns)
        np.testing.assert_array_equal(back[row, real], TOKENS[row, real])


def test_a_window_holds_its_tokens_row_by_row():
    joined = join_windows(TOKENS, GRIDS, 2)
    of_picture = np.asarray(TOKENS[1, :12]).reshape(2, 6, 3)
    for place in range(3):
        window = of_picture[:, 2 * place : 2 * place + 2]  # (row, column, channel)
        np.testing.assert_array_equal(joined[1, place], window.ravel())


@pytest.mark.parametrize("move", [join_windows, split_windows])
def test_windows_that_do_not_fill_a_picture_are_refused(move):
    with pytest.raises(ValueError, match="a grid of 3 x 4 tokens does not fill windows of 2 x 2"):
        move(TOKENS[:1, :, :1].repeat(4, 2), np.array([[3, 4]], np.int32), 2)
