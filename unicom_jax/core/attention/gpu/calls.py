"""The kernels' arrays, the blocks that each program visits, and the cost of a call."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from unicom_jax.core.attention.blocks import PARTLY, WHOLE, block_states
from unicom_jax.core.attention.gpu.kernels import forward_kernel, keys_kernel, queries_kernel
from unicom_jax.core.attention.kernel_parts import filled_mask, like
from unicom_jax.core.batch import MaskIntervals


@dataclasses.dataclass(frozen=True)
class Tiles:
    """Block sizes as (queries, keys), powers of two, that fit shared memory and registers.

    Attributes:
      forward: blocks of the forward pass.
      backward: blocks of both kernels of the backward pass.
    """

    forward: tuple[int, int]
    backward: tuple[int, int]
    warps: int


def _tiles(head_dim: int, dtype: jnp.dtype) -> Tiles:
    """Sizes for which ptxas keeps (nearly) everything in registers, for sm_80 and sm_90a."""
    narrow = head_dim <= 128
    if dtype.itemsize <= 2:
        if narrow:
            return Tiles((128, 64), (64, 64), 8 if head_dim > 64 else 4)
        return Tiles((64, 64), (32, 64), 8)
    return Tiles((64, 32), (32, 32), 4) if narrow else Tiles((32, 32), (16, 32), 4)


def _filled(x: jax.Array, slots: int) -> jax.Array:
    """(B, S, H, D) padded with zeros to `slots` slots and to a power of two of channels."""
    channels = max(16, pl.next_power_of_2(x.shape[3]))  # 16: the least a tensor core multiplies
    more = (slots - x.shape[1], channels - x.shape[3])
    return jnp.pad(x, ((0, 0), (0, more[0]), (0, 0), (0, more[1])))


def _listed(states: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Blocks of the last axis: whole ones, then partly seen ones, then hidden ones; and the
    numbers of whole and of seen blocks."""
    order = jnp.argsort(-states, axis=-1).astype(jnp.int32)
    whole, seen = (jnp.sum(states >= least, axis=-1) for least in (WHOLE, PARTLY))
    return order, jnp.stack([whole, seen], axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class _Arranged:
    """Inputs of a call, padded to whole blocks."""

    q: jax.Array
    k: jax.Array
    v: jax.Array
    bounds: jax.Array
    states: jax.Array

    @property
    def group(self) -> int:
        return self.q.shape[2] // self.k.shape[2]


def _arrange(q, k, v, mask: MaskIntervals, blocks: tuple[int, int]) -> _Arranged:
    queries, keys = (
        -(-x.shape[1] // block) * block for x, block in zip((q, k), blocks, strict=True)
    )
    mask = filled_mask(mask, queries)
    return _Arranged(
        _filled(q, queries),
        *(_filled(x.astype(q.dtype), keys) for x in (k, v)),
        jnp.stack(jax.tree.leaves(mask), axis=1),
        block_states(mask, keys, *blocks),
    )


def _call(kernel, grid, inputs, outputs, shapes, warps, products, arrays, interpret):
    """Runs a kernel that computes `products` products per query-key pair; `arrays[3:5]` is q, k."""
    q, k = arrays[3:5]
    pairs = q.size // q.shape[3] * k.shape[1]
    # Each array counts once: what several programs read of a row is in the cache.
    moved = sum(x.size * x.dtype.itemsize for x in (*arrays, *shapes))
    cost = pl.CostEstimate(
        flops=2 * products * pairs * q.shape[3], transcendentals=pairs, bytes_accessed=moved
    )
    return pl.pallas_call(
        kernel,
        grid=grid,
        in_specs=inputs,
        out_specs=outputs,
        out_shape=shapes,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=2),
        cost_estimate=cost,
        metadata={"flops": str(cost.flops), "bytes_accessed": str(cost.bytes_accessed)},
        interpret=interpret,
        name=f"attention_{kernel.func.__name__}",
    )(*arrays)


def _query_specs(x: _Arranged, queries: int) -> tuple[list[pl.BlockSpec], pl.BlockSpec, ...]:
    """Specs for a grid (blocks of queries, heads, rows): lists, bounds, q, k, v; q; rows."""
    slots, dim, group = x.k.shape[1], x.q.shape[3], x.group
    of_queries = pl.BlockSpec((None, queries, None, dim), lambda i, h, b: (b, i, h, 0))
    of_keys = pl.BlockSpec(
        (None, slots, None, dim), lambda i, h, b: (b, 0, jax.lax.div(h, group), 0)
    )
    inputs = [
        pl.BlockSpec((None, None, x.states.shape[2]), lambda i, h, b: (b, i, 0)),
        pl.BlockSpec((None, None, 2), lambda i, h, b: (b, i, 0)),
        pl.BlockSpec((None, 4, queries), lambda i, h, b: (b, 0, i)),
        of_queries,
        of_keys,
        of_keys,
    ]
    return inputs, of_queries, pl.BlockSpec((None, None, queries), lambda i, h, b: (b, h, i))


def forward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: MaskIntervals,
    blocks: tuple[int, int] | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """An `online.Forward`.

    Args:
      blocks: queries and keys in a block, powers of two; None: sizes that fit the hardware.
      interpret: run without a GPU, step by step.
    """
    (_, slots, heads, head_dim), tiles = q.shape, _tiles(q.shape[3], q.dtype)
    queries, keys = blocks or tiles.forward
    x = _arrange(q, k, v, mask, (queries, keys))
    inputs, of_queries, of_rows = _query_specs(x, queries)
    rows = jax.ShapeDtypeStruct((len(q), heads, x.q.shape[1]), jnp.float32)
    out, log_sum = _call(
        partial(forward_kernel, keys=keys),
        (x.q.shape[1] // queries, heads, len(q)),
        inputs,
        [of_queries, of_rows],
        [like(x.q), rows],
        tiles.warps,
        2,
        (*_listed(x.states), x.bounds, x.q, x.k, x.v),
        interpret,
    )
    return out[:, :slots, :, :head_dim], log_sum[:, :, :slots]


def backward(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: MaskIntervals,
    log_sum: jax.Array,
    mean: jax.Array,
    gradient: jax.Array,
    blocks: tuple[int, int] | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """An `online.Backward`; further arguments as for `forward`."""
    tiles = _tiles(q.shape[3], q.dtype)
    blocks = blocks or tiles.backward
    x = _arrange(q, k, v, mask, blocks)
    more = x.q.shape[1] - q.shape[1]
    rows = [jnp.pad(row, ((0, 0), (0, 0), (0, more))) for row in (log_sum, mean)]
    shared = x.bounds, x.q, x.k, x.v, _filled(gradient, x.q.shape[1]), *rows
    dq = _of_queries(x, shared, blocks, tiles.warps, interpret)
    dk, dv = _of_keys(x, shared, blocks, tiles.warps, interpret)
    return tuple(
        found[:, : like.shape[1], :, : like.shape[3]].astype(like.dtype)
        for found, like in zip((dq, dk, dv), (q, k, v), strict=True)
    )


def _of_queries(x: _Arranged, shared, blocks, warps: int, interpret: bool) -> jax.Array:
    queries, keys = blocks
    rows, slots, heads, _ = x.q.shape
    inputs, of_queries, of_rows = _query_specs(x, queries)
    return _call(
        partial(queries_kernel, keys=keys),
        (slots // queries, heads, rows),
        [*inputs, of_queries, of_rows, of_rows],
        [of_queries],
        [like(x.q)],
        warps,
        3,
        (*_listed(x.states), *shared),
        interpret,
    )[0]


def _of_keys(x: _Arranged, shared, blocks, warps: int, interpret: bool) -> tuple[jax.Array, ...]:
    queries, keys = blocks
    rows, slots, _, dim = x.q.shape
    states, group = x.states.swapaxes(1, 2), x.group
    of_queries = pl.BlockSpec((None, slots, group, dim), lambda j, h, b: (b, 0, h, 0))
    of_keys = pl.BlockSpec((None, keys, None, dim), lambda j, h, b: (b, j, h, 0))
    of_rows = pl.BlockSpec((None, group, slots), lambda j, h, b: (b, h, 0))
    return _call(
        partial(keys_kernel, queries=queries, heads=group),
        (x.k.shape[1] // keys, x.k.shape[2], rows),
        [
            pl.BlockSpec((None, None, states.shape[2]), lambda j, h, b: (b, j, 0)),
            pl.BlockSpec((None, None, 2), lambda j, h, b: (b, j, 0)),
            pl.BlockSpec((None, 4, slots), lambda j, h, b: (b, 0, 0)),
            *(of_queries, of_keys, of_keys, of_queries, of_rows, of_rows),
        ],
        [of_keys, of_keys],
        [like(x.k), like(x.v)],
        warps,
        4,
        (*_listed(states), *shared),
        interpret,
    )
