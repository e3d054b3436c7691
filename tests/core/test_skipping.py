"""Rows that are not needed are not computed, and change nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core.skipping import on_present

ROWS = jnp.asarray(np.random.default_rng(0).standard_normal((7, 3)), jnp.float32)
PRESENT = np.array([0, 1, 0, 0, 1, 1, 0], bool)


def network(weights, rows):
    return {"out": jnp.tanh(rows["x"] @ weights), "sum": rows["x"].sum(1)}


@pytest.mark.parametrize("chunk", [1, 2, 4, 20])
def test_present_rows_are_computed_in_their_places_and_others_are_zero(chunk):
    weights = jnp.ones((3, 2))

    def loss(weights, x, run):
        found = run(weights, {"x": x})
        return jnp.sum(jnp.where(PRESENT[:, None], jnp.sin(found["out"]), 0)), found

    def skipping(weights, rows):
        return on_present(network, weights, rows, PRESENT, chunk)

    grad = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, found), skipped = grad(weights, ROWS, skipping)
    (_, whole), gradient = grad(weights, ROWS, network)
    for name, value in whole.items():
        shown = PRESENT.reshape(-1, *[1] * (value.ndim - 1))
        np.testing.assert_allclose(found[name], np.where(shown, value, 0), atol=1e-6)
    for one, other in zip(skipped, gradient, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_chunks_without_a_present_row_do_not_run():
    ran = []

    def counted(weights, rows):
        jax.debug.callback(lambda: ran.append(1), ordered=True)
        return rows * weights

    on_present(counted, 2.0, ROWS, jnp.asarray(PRESENT), 2)
    jax.effects_barrier()
    assert len(ran) == 2  # three rows in chunks of two, of four chunks
