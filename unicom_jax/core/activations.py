"""Placement of activations on a mesh: which mesh axes split each axis of an array.

Models say what each axis means and never mention a mesh:

    hidden = place(hidden, ROWS, SLOTS)      # (B, S, W): rows over data, slots over `context`

The names are looked up in the mesh that `on_mesh` sets around a traced function (around the loss,
in `training/step.py`). Without a mesh, or on one device, nothing happens.

Rows of packed sequences are long, so their slots are split too. Pictures are short: each stays
whole, and the devices along `context` take different pictures. Only attention looks across slots
(`core/attention/sharded.py`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, PartitionSpec

MeshAxes = tuple[str, ...]

ROWS: MeshAxes = ("slice", "data", "fsdp")  # of a batch
SLOTS: MeshAxes = ("context",)  # of a packed row
PICTURES: MeshAxes = (*ROWS, *SLOTS)  # of a batch of pictures
TENSOR: MeshAxes = ("tensor",)  # of heads, hidden channels and vocabulary
# A weight is gathered before it meets activations, so it may also be split over devices that share
# a sequence: those along `context` hold parts of it, as those along `fsdp` do.
EMBED: MeshAxes = ("fsdp", "context")  # of the weights' "embed" dimension


def on_mesh(mesh: Mesh) -> contextlib.AbstractContextManager:
    """Sets the mesh that `place` uses, for tracing a function with arguments on its devices."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def current_mesh() -> AbstractMesh | None:
    """The current mesh; None if none is set, if it has one device, or inside a program that each
    device runs by itself (`jax.shard_map`)."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = all(kind == AxisType.Manual for kind in mesh.axis_types)
    return None if mesh.empty or mesh.size == 1 or manual else mesh


def fitting(axes: MeshAxes, size: int, mesh: Mesh | AbstractMesh) -> MeshAxes:
    """The leading `axes` that divide `size` evenly, without those of one device.

    The first axis that does not divide ends the list: its devices then hold copies.
    """
    taken: MeshAxes = ()
    for axis in axes:
        devices = mesh.shape.get(axis, 1)
        if size % (devices * count(taken, mesh)):
            break
        taken += (axis,) if devices > 1 else ()
    return taken


def count(axes: MeshAxes, mesh: Mesh | AbstractMesh) -> int:
    """Number of devices along all of `axes`."""
    return math.prod(mesh.shape[axis] for axis in axes)


def split_over(
    shape: Sequence[int], axes: Sequence[MeshAxes], mesh: Mesh | AbstractMesh
) -> tuple[MeshAxes, ...]:
    """For each leading dimension, those of its mesh axes that split it."""
    return tuple(fitting(names, size, mesh) for names, size in zip(axes, shape, strict=False))


def place(x: jax.Array, *axes: MeshAxes) -> jax.Array:
    """x with leading dimensions split over these mesh axes where they divide; the rest whole."""
    if (mesh := current_mesh()) is None:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*split_over(x.shape, axes, mesh)))


def on_own_pictures(run: Callable[..., jax.Array], weights: Any, *pictures: jax.Array) -> jax.Array:
    """`run(weights, *pictures)`: each device runs its own pictures with all of the weights.

    For programs that depend on a picture's shape. The weights get no gradient.
    """
    weights = jax.lax.stop_gradient(weights)
    if (mesh := current_mesh()) is None:
        return run(weights, *pictures)
    own = PartitionSpec(fitting(PICTURES, len(pictures[0]), mesh))
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(PartitionSpec(), *(own for _ in pictures)),
        out_specs=own,
        check_vma=False,
    )(weights, *pictures)


def own_slots(x: jax.Array) -> jax.Array:
    """(B, S, ...) -> (B c, S / c, ...): each device's part of a row (c of them) becomes a row.

    For sums over slots, which then need no slot of another device.
    """
    if (mesh := current_mesh()) is None:
        return x
    parts = count(fitting(SLOTS, x.shape[1], mesh), mesh)
    return place(x.reshape(x.shape[0] * parts, x.shape[1] // parts, *x.shape[2:]), PICTURES)
