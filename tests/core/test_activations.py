"""Which mesh axes split an activation; that arrays are really split so is tested elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from unicom_jax.core.activations import (
    PICTURES,
    ROWS,
    SLOTS,
    current_mesh,
    fitting,
    on_mesh,
    own_slots,
    place,
)
from unicom_jax.parallel.mesh import AXES, make_mesh

MESH = AbstractMesh((2, 1, 4, 3, 2), AXES)  # slice, data, fsdp, context, tensor


@pytest.mark.parametrize(
    ("axes", "size", "taken"),
    [
        (ROWS, 16, ("slice", "fsdp")),  # axes of one device are left out
        (ROWS, 6, ("slice",)),  # 6 / 2 does not divide over fsdp
        (ROWS, 7, ()),
        (SLOTS, 9, ("context",)),
        (PICTURES, 24, ("slice", "fsdp", "context")),
        (PICTURES, 16, ("slice", "fsdp")),  # context holds copies
        (("no such axis",), 8, ()),
    ],
)
def test_axes_are_taken_in_order_while_the_size_divides(axes, size, taken):
    assert fitting(axes, size, MESH) == taken


def test_without_a_mesh_or_on_one_device_nothing_is_placed():
    x = jnp.ones((4, 6))
    assert current_mesh() is None and place(x, ROWS, SLOTS) is x and own_slots(x) is x

    def inside(x: jax.Array) -> jax.Array:
        with on_mesh(make_mesh()):
            assert current_mesh() is None
            return place(x, ROWS, SLOTS)

    assert jax.make_jaxpr(inside)(x).eqns == []


def test_slots_of_a_device_become_rows_in_the_order_of_the_devices():
    def inside(x: jax.Array) -> jax.Array:
        with jax.sharding.use_abstract_mesh(MESH):
            return own_slots(x)

    traced = jax.make_jaxpr(inside)(jnp.zeros((8, 6, 5)))
    assert traced.out_avals[0].shape == (24, 2, 5)
    constraint = traced.eqns[-1].params["sharding"]
    assert constraint.spec[0] == ("slice", "fsdp", "context")
