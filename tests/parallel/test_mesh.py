"""One line of text to a mesh, and one table that places weights and batches on it."""

from __future__ import annotations

import dataclasses

import chex
import jax
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from tests.tiny import tiny_config
from unicom_jax.core.module import ParamSpec, iter_specs
from unicom_jax.families.build import build_codec, build_encoder, build_unified
from unicom_jax.models.autoencoder import AutoencoderKL
from unicom_jax.parallel.accelerators import find_accelerator, preset_mesh
from unicom_jax.parallel.mesh import AXES, arrange, make_mesh, parse_mesh
from unicom_jax.parallel.sharding import (
    BATCH_AXES,
    RULES,
    fetch,
    local_rows,
    optimizer_shardings,
    param_sharding,
    param_shardings,
    place_batch,
    place_copies,
    replicated,
    rows_by_process,
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
        ("fsdp=3", r"asks for 3 devices, but there are 8; change a size or set one axis to -1"),
        ("fsdp=-1,tensor=3", r"asks for 6 devices, but there are 8"),
    ],
)
def test_a_line_that_makes_no_mesh_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_mesh(text, 8)
    assert str(caught.value).startswith(f"mesh={text!r}") and "\n" not in str(caught.value)


def test_the_mesh_of_this_machine_has_all_axes():
    mesh = make_mesh("fsdp=-1")
    assert mesh.axis_names == AXES and mesh.size == jax.device_count()


# ---- accelerators -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "flops"),
    [
        ("TPU v4", "v4", 275e12),
        ("TPU v5 lite", "v5e", 197e12),
        ("TPU v5", "v5p", 459e12),
        ("TPU v6 lite", "v6e", 918e12),
        ("TPU7x", "tpu7x", 2307e12 / 2),  # two devices a chip
        ("NVIDIA A100-SXM4-80GB", "a100-80", 312e12),
        ("NVIDIA H100 80GB HBM3", "h100", 989e12),
        ("NVIDIA H200", "h200", 989e12),
    ],
)
def test_an_accelerator_is_found_by_what_jax_calls_it(kind, name, flops):
    found = find_accelerator(kind)
    assert (found.name, found.flops) == (name, flops)


def test_nothing_is_claimed_about_an_unknown_device():
    assert find_accelerator("cpu") is None
    assert preset_mesh("cpu", 4) == "slice=1,fsdp=-1"


@pytest.mark.parametrize(
    ("kind", "devices", "slices", "sizes"),
    [
        ("TPU v5p", 64, 1, (1, 1, 64, 1, 1)),
        ("TPU v6 lite", 512, 2, (2, 1, 256, 1, 1)),
        ("NVIDIA H100 80GB HBM3", 128, 1, (1, 16, 8, 1, 1)),
        ("NVIDIA H100 80GB HBM3", 2, 1, (1, 1, 2, 1, 1)),
    ],
)
def test_a_preset_shards_over_fast_links_only(kind, devices, slices, sizes):
    assert parse_mesh(preset_mesh(kind, devices, slices), devices) == sizes


@dataclasses.dataclass(frozen=True)
class Chip:
    """What JAX's mesh builders ask of a TPU device."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int
    process_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5p"
    core_on_chip: int = 0


def chips(slices: int, side: int = 4) -> list[Chip]:
    """Slices of side x side chips, 2 x 2 of them a process."""
    places = [(s, x, y) for s in range(slices) for x in range(side) for y in range(side)]
    hosts = side // 2

    def process(s: int, x: int, y: int) -> int:
        return (s * hosts + x // 2) * hosts + y // 2

    return [Chip(i, (x, y, 0), s, process(s, x, y)) for i, (s, x, y) in enumerate(places)]


def test_slices_are_along_their_own_axis():
    arranged = arrange("slice=2,fsdp=-1,tensor=4", chips(2))
    assert arranged.shape == (2, 1, 4, 1, 4)
    assert [{chip.slice_index for chip in part.flat} for part in arranged] == [{0}, {1}]
    assert arrange("auto", chips(2)).shape == (2, 1, 16, 1, 1)


def test_weights_are_not_spread_over_slices_unasked():
    with pytest.raises(ValueError, match=r"has slice=1, but the devices are in 2 slices; write"):
        arrange("fsdp=-1", chips(2))


# ---- who loads which rows -----------------------------------------------------------------


def processes(*numbers: int, shape: tuple[int, ...]) -> np.ndarray:
    """A mesh's devices that know no more than their process."""
    devices = np.empty(len(numbers), object)
    devices[:] = [Chip(i, (i, 0, 0), 0, number) for i, number in enumerate(numbers)]
    return devices.reshape(shape)


def test_processes_share_a_batch_by_the_mesh():
    devices = processes(0, 0, 1, 1, shape=(1, 2, 2, 1, 1))
    assert rows_by_process(devices, 8) == {0: (0, 1, 2, 3), 1: (4, 5, 6, 7)}


def test_processes_along_the_tensor_axis_load_the_same_rows():
    devices = processes(0, 0, 1, 1, shape=(1, 1, 1, 1, 4))
    assert rows_by_process(devices, 2) == {0: (0, 1), 1: (0, 1)}
    devices = processes(0, 1, 2, 3, shape=(1, 1, 2, 1, 2))
    assert rows_by_process(devices, 4) == {0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 3)}


def test_processes_along_the_context_axis_load_the_same_whole_rows():
    devices = processes(0, 1, 2, 3, shape=(1, 1, 2, 2, 1))
    assert rows_by_process(devices, 4) == {0: (0, 1), 1: (0, 1), 2: (2, 3), 3: (2, 3)}


def test_a_process_loads_the_rows_of_devices_that_are_no_neighbours():
    rows = rows_by_process(arrange("fsdp=-1", chips(1)), 16)
    assert rows[0] == (0, 1, 4, 5)  # a 2 x 2 corner of a 4 x 4 torus
    assert sorted(row for share in rows.values() for row in share) == list(range(16))


def test_a_batch_that_does_not_divide_over_the_mesh_is_refused():
    with pytest.raises(ValueError, match="6 rows does not divide over 4 devices; set batch_size"):
        rows_by_process(processes(0, 0, 1, 1, shape=(1, 1, 4, 1, 1)), 6)


def test_accumulation_parts_that_leave_devices_without_rows_are_refused():
    devices = processes(0, 0, 1, 1, shape=(1, 1, 4, 1, 1))
    assert rows_by_process(devices, 8, parts=2) == rows_by_process(devices, 8)
    with pytest.raises(ValueError, match="8 rows in 4 parts does not .* a multiple of 16, or"):
        rows_by_process(devices, 8, parts=4)


def test_rows_that_two_processes_share_in_part_are_refused():
    with pytest.raises(ValueError, match="overlap but are not the same; choose tensor and context"):
        rows_by_process(processes(0, 0, 1, 1, 2, 2, shape=(1, 1, 2, 1, 3)), 4)


def test_one_process_loads_all_rows():
    assert local_rows(make_mesh(), 3) == (0, 1, 2)


# ---- placement ----------------------------------------------------------------------------


def spec_of(shape: tuple[int, ...], *axes: str | None) -> PartitionSpec:
    return param_sharding(ParamSpec(shape, axes), MESH).spec


def test_logical_axes_are_looked_up_in_one_table():
    assert spec_of((8, 6), "embed", "mlp") == PartitionSpec("fsdp", "tensor")
    assert spec_of((3, 8, 6), "layers", "heads", "embed") == PartitionSpec(None, "tensor", None)


def test_a_dimension_that_its_axis_does_not_divide_stays_whole():
    assert spec_of((6, 3), "embed", "mlp") == PartitionSpec(None, None)


def test_of_two_dimensions_with_one_name_the_first_that_divides_is_split():
    assert spec_of((8, 8), "embed", "embed") == PartitionSpec("fsdp", None)
    assert spec_of((6, 8), "embed", "embed") == PartitionSpec(None, "fsdp")


def test_two_names_that_ask_for_one_mesh_axis_are_refused_and_named():
    with pytest.raises(ValueError, match=r"'heads' and 'mlp', .* on the mesh axis 'tensor'; name"):
        spec_of((8, 8), "heads", "mlp")


def test_weights_are_sharded_along_context_too():
    mesh = AbstractMesh((1, 1, 4, 2, 1), AXES)
    spec = param_sharding(ParamSpec((16, 6), ("embed", "mlp")), mesh).spec
    assert spec == PartitionSpec(("fsdp", "context"), None)
    spec = param_sharding(ParamSpec((12, 6), ("embed", "mlp")), mesh).spec
    assert spec == PartitionSpec("fsdp", None)  # 12 divides by 4, not by 8


def test_every_rule_names_axes_of_the_mesh():
    assert {axis for axes in RULES.values() for axis in axes} <= set(AXES)


@pytest.mark.parametrize("overrides", [{}, {"unified__pathway": "query"}])
def test_large_weights_of_every_model_are_sharded(overrides):
    config = tiny_config(**overrides)
    modules = [build_encoder(config), build_codec(config), build_unified(config)]
    modules.append(AutoencoderKL(latent_channels=4, widths=(8, 8), resnets=1, groups=4))
    mesh = AbstractMesh((1, 1, 2, 1, 1), AXES)
    for module in modules:
        for path, spec in iter_specs(module.specs()):
            whole = param_sharding(spec, mesh).is_fully_replicated
            assert not whole or spec.size < 1024, (path, spec)


def test_a_logical_axis_without_a_rule_is_named():
    with pytest.raises(ValueError, match="logical axis 'width' has no rule; add it to"):
        spec_of((8,), "width")


def test_moments_are_sharded_as_their_weights_and_counters_are_replicated():
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


def test_copies_are_placed_whole_and_fetched_as_they_were():
    tree = {"x": np.arange(6.0).reshape(2, 3), "y": np.float32(7)}
    placed = place_copies(tree, replicated(make_mesh()))
    assert placed["x"].sharding.is_fully_replicated
    chex.assert_trees_all_equal(fetch(placed), tree)
