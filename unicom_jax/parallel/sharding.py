"""Placement by one table: logical axis -> mesh axis. All arrays are placed by this module."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from unicom_jax.core.activations import EMBED, ROWS, TENSOR, MeshAxes, fitting
from unicom_jax.core.module import ParamSpec, Specs, map_specs
from unicom_jax.parallel.mesh import AXES

RULES: dict[str | None, MeshAxes] = {
    "embed": EMBED,
    "features": (),
    "latent": (),
    "mlp": TENSOR,
    "heads": TENSOR,
    "kv_heads": TENSOR,
    "head_dim": (),
    "vocab": TENSOR,
    "layers": (),
    None: (),
}
BATCH_AXES = ROWS


def param_sharding(spec: ParamSpec, mesh: Mesh) -> NamedSharding:
    """The sharding of one weight.

    A dimension is split over the mesh axes of its rule where they divide it
    (`core.activations.fitting`). If two dimensions have the same name, the first one that can be
    split is.

    Raises:
      ValueError: a logical axis without a rule, or two different ones that use one mesh axis.
    """
    _check_axes(spec)
    placed: dict[str | None, MeshAxes] = {}
    split = []
    for size, logical in zip(spec.shape, spec.axes, strict=True):
        axes = () if placed.get(logical) else fitting(RULES[logical], size, mesh)
        placed[logical] = placed.get(logical) or axes
        split.append(axes if len(axes) > 1 else next(iter(axes), None))
    return NamedSharding(mesh, PartitionSpec(*split))


def _check_axes(spec: ParamSpec) -> None:
    owners: dict[str, str | None] = {}
    for logical in spec.axes:
        if logical not in RULES:
            raise ValueError(
                f"logical axis {logical!r} has no rule; add it to parallel.sharding.RULES"
            )
        for axis in RULES[logical]:
            if owners.setdefault(axis, logical) != logical:
                raise ValueError(
                    f"a weight of axes {spec.axes} has two, {owners[axis]!r} and {logical!r}, that "
                    f"parallel.sharding.RULES put on the mesh axis {axis!r}; name one of them None"
                )


def param_shardings(specs: Specs, mesh: Mesh) -> Any:
    """A tree of shardings for a tree of specs."""
    return map_specs(lambda spec: param_sharding(spec, mesh), specs)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def optimizer_shardings(abstract_state: Any, shardings: Any, mesh: Mesh) -> Any:
    """Moments are sharded like their weights; everything else is replicated.

    Optax keeps moments in copies of the weights' tree, wherever these are nested, so a moment is
    recognised by the end of its path.
    """
    weights = traverse_util.flatten_dict(shardings)

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        tails = (names[start:] for start in range(len(names)))
        tail = next((tail for tail in tails if tail in weights), None)
        return replicated(mesh) if tail is None or leaf.ndim == 0 else weights[tail]

    return jax.tree_util.tree_map_with_path(place, abstract_state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over all data-parallel axes, with copies along `context` and `tensor`.

    A batch is small: ids and bytes. Arrays computed from it are split further
    (`core.activations`), which moves no data.
    """
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def local_rows(mesh: Mesh, rows: int, parts: int = 1) -> tuple[int, ...]:
    """The rows of a global batch that this process has to make, in order.

    They follow from the devices, not from the process's number: processes that differ only along
    the context or tensor axis make the same whole rows, and a process whose devices are not
    adjacent in the mesh makes several ranges of rows.

    Raises:
      ValueError: as `rows_by_process`.
    """
    return rows_by_process(mesh.devices, rows, parts)[jax.process_index()]


def rows_by_process(devices: np.ndarray, rows: int, parts: int = 1) -> dict[int, tuple[int, ...]]:
    """`local_rows` of every process.

    Args:
      devices: the devices of a mesh, in its shape.
      parts: accumulation steps of a batch; every device has rows in each.

    Raises:
      ValueError: the rows of a part do not divide over the mesh's batch axes, or two processes
        share some of their rows but not all.
    """
    shards = count_row_shards(dict(zip(AXES, devices.shape, strict=True)), rows, parts)
    each, owned = rows // shards, {}
    for shard, copies in enumerate(devices.reshape(shards, -1)):  # BATCH_AXES come first in AXES
        for process in sorted({device.process_index for device in copies}):
            run = range(shard * each, (shard + 1) * each)
            owned.setdefault(process, []).extend(run)
    shares = {process: tuple(share) for process, share in owned.items()}
    for one in set(shares.values()):
        for other in set(shares.values()) - {one}:
            if set(one) & set(other) or len(one) != len(other):
                raise ValueError(
                    "the mesh gives two processes rows of a batch that overlap but are not the "
                    "same; choose tensor and context sizes whose product divides the devices of "
                    "a process or is a multiple of them"
                )
    return shares


def count_row_shards(sizes: Mapping[str, int], rows: int, parts: int = 1) -> int:
    """The number of devices over which a mesh of these sizes splits the rows of a batch.

    Raises:
      ValueError: the rows of a part do not divide over these devices.
    """
    shards = math.prod(sizes[axis] for axis in BATCH_AXES)
    if rows % (shards * parts):
        in_parts = f" in {parts} parts" if parts > 1 else ""
        raise ValueError(
            f"a batch of {rows} rows{in_parts} does not divide over {shards} devices; set "
            f"batch_size to a multiple of {shards * parts}, or let the mesh's tensor or context "
            "axis take more of them"
        )
    return shards


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts the `local_rows` of a batch on this process's devices, as its part of global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


def place_copies(tree: Any, place: Sharding) -> Any:
    """Turns host values, the same on every process, into global arrays with sharding `place`."""

    def put(value: Any) -> jax.Array:
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, place, lambda index: value[index])

    return jax.tree.map(put, tree)


def fetch(tree: Any) -> Any:
    """Global arrays, however sharded, as NumPy arrays on every process."""
    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), tree)
