"""One line of text to a mesh, and one table that places weights and batches on it."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from unicom_jax.core.module import ParamSpec
from unicom_jax.parallel.mesh import AXES, make_mesh, parse_mesh
from unicom_jax.parallel.sharding import (
    BATCH_AXES,
    optimizer_shardings,
    param_sharding,
    param_shardings,
    place_batch,
    replicated,
)

MESH = AbstractMesh((1, 1, 4, 1, 2), AXES)


@pytest.mark.parametrize(
    ("text", "devices", "sizes"),
    [
        ("fsdp=-1", 8, (1, 1, 8, 1, 1)),
        ("fsdp=-1,tensor=4", 8, (1, 1, 2, 1, 4)),
        ("slice=2, data=2, fsdp=2", 8, (2, 2, 2, 1, 1)),
        ("tensor=1,fsdp=-1", 1, (1, 1, 1, 1, 1)),
        ("", 1, (1, 1, 1, 1, 1)),
    ],
)
def test_a_line_of_text_gives_the_size_of_every_axis(text, devices, sizes):
    assert parse_mesh(text, devices) == sizes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsdq=2", r"unknown axis 'fsdq'; axes are slice, data, fsdp, context, tensor"),
        ("fsdp=two", r"write fsdp=N with a positive integer N or -1"),
        ("fsdp", r"write fsdp=N with a positive integer N or -1"),
        ("fsdp=-1,tensor=0", r"write tensor=N with a positive integer N or -1"),
        ("fsdp=-2", r"write fsdp=N with a positive integer N or -1"),
        ("data=2,data=4", r"axis 'data' is given twice"),
        ("data=-1,fsdp=-1", r"only one axis may be -1, here data, fsdp"),
        ("fsdp=3", r"asks for 3 devices but 8 are here; change a size or let one axis be -1"),
        ("fsdp=-1,tensor=3", r"asks for 6 devices but 8 are here"),
    ],
)
def test_a_line_that_makes_no_mesh_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_mesh(text, 8)
    assert str(caught.value).startswith(f"mesh={text!r}") and "\n" not in str(caught.value)


def test_the_mesh_of_this_machine_has_all_axes():
    mesh = make_mesh("fsdp=-1")
    assert mesh.axis_names == AXES and mesh.size == jax.device_count()


# ---- placement ----------------------------------------------------------------------------


def spec_of(shape: tuple[int, ...], *axes: str | None) -> PartitionSpec:
    return param_sharding(ParamSpec(shape, axes), MESH).spec


def test_logical_axes_are_looked_up_in_one_table():
    assert spec_of((8, 6), "embed", "mlp") == PartitionSpec("fsdp", "tensor")
    assert spec_of((3, 8, 6), "layers", "heads", "embed") == PartitionSpec(None, "tensor", None)


def test_a_dimension_that_its_axis_does_not_divide_stays_whole():
    assert spec_of((6, 3), "embed", "mlp") == PartitionSpec(None, None)


def test_a_mesh_axis_is_used_once_for_a_weight():
    assert spec_of((8, 8), "embed", "embed") == PartitionSpec("fsdp", None)


def test_a_logical_axis_without_a_rule_is_named():
    with pytest.raises(ValueError, match="logical axis 'width' has no rule; add it to"):
        spec_of((8,), "width")


def test_moments_lie_where_their_weights_lie_and_counters_everywhere():
    specs = {"layer": {"kernel": ParamSpec((8, 6), ("embed", "mlp"))}}
    weights = param_shardings(specs, MESH)
    shapes = {"layer": {"kernel": jax.ShapeDtypeStruct((8, 6), np.float32)}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    state = jax.eval_shape(optimizer.init, shapes)
    placed = jax.tree.leaves(optimizer_shardings(state, weights, MESH))
    for leaf, sharding in zip(jax.tree.leaves(state), placed, strict=True):
        wanted = weights["layer"]["kernel"] if leaf.ndim else replicated(MESH)
        assert sharding == wanted
    assert sum(leaf.ndim > 0 for leaf in jax.tree.leaves(state)) == 2  # both moments


def test_a_batch_is_placed_with_its_rows_over_the_data_axes():
    rows = {"x": np.arange(6.0).reshape(2, 3)}
    placed = place_batch(rows, make_mesh("fsdp=-1"))
    np.testing.assert_array_equal(placed["x"], rows["x"])
    assert placed["x"].sharding.spec == PartitionSpec(BATCH_AXES)


def test_a_context_axis_is_refused_while_nothing_is_split_along_it():
    with pytest.raises(ValueError, match="not split over devices yet"):
        make_mesh("context=2", devices=[jax.devices()[0]] * 2)
