"""Attention over many devices: each computes some rows, some queries and some heads.

Queries stay where their slots are. Keys and values are gathered over the devices that share a row,
as for Llama 3 (arXiv:2407.21783, §3.3.2), and not sent around a ring. Every backend then runs
unchanged with the exact mask and one softmax per query over all keys; the gradient of the gather is
the one sum that keys and values need; and the gathered arrays are small, since few key heads serve
many query heads. A query's intervals count the slots of the whole row, so a device needs only its
own queries' part of the mask.

            keys 0 1 2 3 4 5 6 7
    device 0   q 0 . . . . . . .      one row of eight slots over context=2: each device
               q 1 1 . . . . . .      has four queries and, for this product, all keys
               ...
    device 1   q 4 4 4 4 4 . . .
               ...

Each device runs a program of its own (`jax.shard_map`), so XLA does not have to split a backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

from unicom_jax.core.activations import TENSOR, MeshAxes, count, fitting
from unicom_jax.core.batch import MaskIntervals

Local = Callable[[jax.Array, jax.Array, jax.Array, MaskIntervals | None], jax.Array]


def sharded_attention(
    local: Local,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: MaskIntervals | None,
    mesh: AbstractMesh,
    rows: MeshAxes,
    slots: MeshAxes,
) -> jax.Array:
    """`local(q, k, v, mask)` computed in parts, one on each device.

    Args:
      q, k, v, mask: as for `attention`.
      rows, slots: mesh axes that split the rows, and the queries and keys of a row. An axis that
        does not divide leaves copies (`core.activations.fitting`); so do heads over `tensor`.
    """
    rows, heads = fitting(rows, q.shape[0], mesh), fitting(TENSOR, q.shape[2], mesh)
    queries, keys = (fitting(slots, x.shape[1], mesh) for x in (q, k))
    # Gradients are summed over unnamed axes; naming the axes of one device avoids an empty sum.
    rows += tuple(axis for axis in mesh.axis_names if mesh.shape[axis] == 1)
    k, v = (_repeat_heads(x, count(heads, mesh)) for x in (k, v))

    def run(q: jax.Array, k: jax.Array, v: jax.Array, mask: MaskIntervals | None) -> jax.Array:
        if keys:
            k, v = (jax.lax.all_gather(x, keys, axis=1, tiled=True) for x in (k, v))
        return local(q, k, v, mask)

    of_queries, of_keys = PartitionSpec(rows, queries, heads), PartitionSpec(rows, keys, heads)
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(of_queries, of_keys, of_keys, PartitionSpec(rows, queries)),
        out_specs=of_queries,
        check_vma=False,  # backends start their loops from constants, which vary over no axis
    )(q, k, v, mask)


def _repeat_heads(x: jax.Array, parts: int) -> jax.Array:
    """Key heads (B, T, K, D) repeated until they divide over `parts` devices.

    The number of query heads is a multiple of both, so each copy serves consecutive query heads.
    """
    return jnp.repeat(x, math.lcm(x.shape[2], parts) // x.shape[2], axis=2)
