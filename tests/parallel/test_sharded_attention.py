"""Attention in parts on eight devices: the same numbers and gradients as on one."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from tests.parallel.programs import on_eight_devices
from unicom_jax.core.activations import ROWS, SLOTS
from unicom_jax.core.attention import attention
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.parallel.mesh import AXES

# rows, slots, query heads, key heads
SIZES = {
    "all divide": (4, 12, 4, 2),
    "one key head for two shards": (4, 12, 2, 1),
    "heads do not divide": (4, 12, 3, 3),
    "rows do not divide": (3, 12, 4, 2),
    "slots do not divide": (4, 11, 4, 2),
}
SCRIPT = """
import chex, jax
from tests.parallel.test_sharded_attention import SIZES, arrays, loss
from unicom_jax.core.activations import on_mesh
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.sharding import place_copies, replicated

mesh = make_mesh("fsdp=2,context=2,tensor=2")
def sharded(*arguments):
    with on_mesh(mesh):
        return loss(*arguments)

for name, sizes in SIZES.items():
    for backend in ("dense", "chunked") if name == "all divide" else ("chunked",):
        one, eight = (
            jax.jit(jax.value_and_grad(f, (0, 1, 2), has_aux=True), static_argnums=4)
            for f in (loss, sharded)
        )
        inputs = arrays(*sizes)
        one = one(*inputs, backend)
        eight = eight(*place_copies(inputs, replicated(mesh)), backend)
        chex.assert_trees_all_close(one, eight, rtol=1e-5, atol=1e-5)
        print(name, backend, eight[0][1].sharding.is_fully_replicated)
"""


def arrays(rows: int, slots: int, heads: int, kv_heads: int) -> tuple:
    """q, k, v and a mask with documents, a noisy copy at the end and slots that see nothing."""
    rng = np.random.default_rng(0)
    shapes = [(rows, slots, n, 8) for n in (heads, kv_heads, kv_heads)]
    i = np.broadcast_to(np.arange(slots, dtype=np.int32), (rows, slots))
    zero, noisy, padding = np.zeros_like(i), (i >= 7) & (i < 10), i >= 10
    stop = np.where(noisy, 3, i + 1)  # its place is at slot 3
    mask = MaskIntervals(
        zero, np.where(padding, 0, stop), np.where(noisy, 7, zero), np.where(noisy, 10, zero)
    )
    return (*(rng.standard_normal(shape, np.float32) for shape in shapes), mask)


def loss(q, k, v, mask, backend):
    block = 5 if backend == "chunked" else None
    seen = attention(q, k, v, mask, backend=backend, block=block, rows=ROWS, slots=SLOTS)
    return (seen * (np.arange(seen.size).reshape(seen.shape) % 7 / 7.0)).sum(), seen


def test_eight_devices_give_what_one_gives_forward_and_backward():
    printed = on_eight_devices("-c", SCRIPT).stdout.splitlines()
    assert len(printed) == len(SIZES) + 1
    assert all(line.endswith("False") for line in printed)  # none of them was computed everywhere


@pytest.mark.parametrize("backend", ["dense", "chunked"])
def test_only_keys_and_values_are_gathered_and_only_along_context(backend):
    q, k, v, mask = arrays(4, 12, 4, 2)

    def run(q, k, v):
        with jax.sharding.use_abstract_mesh(AbstractMesh((1, 1, 2, 2, 2), AXES)):
            return loss(q, k, v, mask, backend)[1]

    (sharded,) = [e for e in jax.make_jaxpr(run)(q, k, v).eqns if e.primitive.name == "shard_map"]
    inside = sharded.params["jaxpr"].eqns
    gathers = [eqn for eqn in inside if eqn.primitive.name == "all_gather"]
    assert [eqn.outvars[0].aval.shape for eqn in gathers] == [(2, 12, 1, 8)] * 2
    assert all(eqn.params["axis_name"] == ("context",) for eqn in gathers)
