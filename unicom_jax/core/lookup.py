"""Looks up rows of a table that is sharded by columns, without gathering the table.

    table (V, W) over f devices, W / f columns each        ids: each device has n of its own

A device sends its ids to the others and reads its columns of everybody's rows; the pieces are then
exchanged, so that each device ends up with its n whole rows. In the backward pass the gradients of
these rows take the same way back, and each device adds them up, in the table's dtype, in its own
columns: no device needs the whole table or its whole gradient. In either direction n W numbers
reach a device.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, Int

from unicom_jax.core.activations import (
    EMBED,
    TENSOR,
    MeshAxes,
    current_mesh,
    fitting,
    place,
    split_over,
)


def look_up(
    table: Float[Array, "V W"],
    ids: Int[Array, "*B"],
    dtype: jnp.dtype,
    axes: tuple[MeshAxes, ...],
) -> Float[Array, "*B W"]:
    """Rows `ids` of the table, in `dtype`.

    Args:
      axes: mesh axes that split the dimensions of `ids` where they divide.
    """
    if (mesh := current_mesh()) is not None:
        placed = split_over(ids.shape, axes, mesh)
        taken = tuple(axis for names in placed for axis in names)
        columns = fitting(EMBED, table.shape[1], mesh)
        if columns and set(columns) <= set(taken):
            return _exchange(table, ids, dtype, mesh, placed, columns)
    # Rows are placed where their ids are, so each device reads whole ones.
    return jnp.take(place(table, TENSOR), ids, axis=0).astype(dtype)


def _exchange(
    table: jax.Array,
    ids: jax.Array,
    dtype: jnp.dtype,
    mesh: AbstractMesh,
    placed: tuple[MeshAxes, ...],
    columns: MeshAxes,
) -> jax.Array:
    def run(part: jax.Array, ids: jax.Array) -> jax.Array:
        everybodys = jax.lax.all_gather(ids.reshape(-1), columns, tiled=True)
        pieces = jnp.take(part, everybodys, axis=0).astype(dtype)
        rows = jax.lax.all_to_all(pieces, columns, split_axis=0, concat_axis=1, tiled=True)
        return rows.reshape(*ids.shape, -1)

    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(PartitionSpec(None, columns), PartitionSpec(*placed)),
        out_specs=PartitionSpec(*placed, None),
        axis_names=frozenset(
            axis for names in placed for axis in names
        ),  # XLA splits the vocabulary over `tensor`
        check_vma=False,
    )(table, ids)
