"""The kernels' arrays and grids, and the blocks that each step of a grid uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from unicom_jax.core.attention.blocks import block_states, with_fetches
from unicom_jax.core.attention.kernel_parts import filled_mask, like
from unicom_jax.core.attention.tpu.kernels import forward_kernel, keys_kernel, queries_kernel
from unicom_jax.core.attention.tpu.sizes import Sizes, sizes_of
from unicom_jax.core.batch import MaskIntervals

# ---- arrays -------------------------------------------------------------------------------------


def _heads_first(x: jax.Array, slots: int) -> jax.Array:
    """(B, S, H, D) -> (B, H, slots, D), padded with zeros."""
    x = x.transpose(0, 2, 1, 3)
    return jnp.pad(x, ((0, 0), (0, 0), (0, slots - x.shape[2]), (0, 0)))


def _slots_first(x: jax.Array, slots: int) -> jax.Array:
    """Inverse of `_heads_first`: the first `slots` slots."""
    return x[:, :, :slots].transpose(0, 2, 1, 3)


def _rows(x: jax.Array, sizes: Sizes) -> jax.Array:
    """One number per query and head, (B, H, S) -> (B, H / heads, heads, S), padded."""
    x = jnp.pad(x, ((0, 0), (0, 0), (0, sizes.queries * sizes.query_blocks - x.shape[2])))
    return x.reshape(sizes.batch, -1, sizes.heads, x.shape[2])


# ---- grids --------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Specs:
    """Block specs of the arrays of one call, by what an array belongs to."""

    bounds: pl.BlockSpec
    queries: pl.BlockSpec
    keys: pl.BlockSpec
    rows: pl.BlockSpec

    @property
    def backward(self) -> list[pl.BlockSpec]:
        """Specs of bounds, q, k, v, gradient, log-sum-exp and mean."""
        by_query, by_key = self.queries, self.keys
        return [self.bounds, by_query, by_key, by_key, by_query, self.rows, self.rows]


def _specs(sizes: Sizes, place: Callable) -> _Specs:
    """`place(*grid, codes)` gives row, part of the query heads, key head, query and key block."""

    def spec(shape: tuple[int | None, ...], index: Callable) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda *grid: index(*place(*grid)))

    of_queries, of_keys, dim = sizes.queries, sizes.keys, sizes.head_dim
    return _Specs(
        bounds=spec((None, 4, of_queries), lambda b, part, head, i, j: (b, 0, i)),
        queries=spec((None, sizes.heads, of_queries, dim), lambda b, p, h, i, j: (b, p, i, 0)),
        keys=spec((None, None, of_keys, dim), lambda b, part, head, i, j: (b, head, j, 0)),
        rows=spec((None, None, sizes.heads, of_queries), lambda b, p, h, i, j: (b, p, 0, i)),
    )


def _by_queries(sizes: Sizes) -> tuple[tuple[int, ...], _Specs]:
    """Grid and blocks of a kernel that sums over blocks of keys."""

    def place(b, part, i, j, codes):
        code = codes[(b * sizes.query_blocks + i) * sizes.key_blocks + j]
        return b, part, jax.lax.div(part, sizes.parts), i, code >> 2

    parts = sizes.kv_heads * sizes.parts
    return (sizes.batch, parts, sizes.query_blocks, sizes.key_blocks), _specs(sizes, place)


def _by_keys(sizes: Sizes) -> tuple[tuple[int, ...], _Specs]:
    """Grid and blocks of a kernel that sums over query heads and blocks of queries."""

    def place(b, head, j, part, i, codes):
        code = codes[(b * sizes.key_blocks + j) * sizes.query_blocks + i]
        return b, head * sizes.parts + part, head, code >> 2, j

    grid = sizes.batch, sizes.kv_heads, sizes.key_blocks, sizes.parts, sizes.query_blocks
    return grid, _specs(sizes, place)


def _call(kernel, grid, inputs, outputs, shapes, scratch, cost, interpret) -> Callable:
    sums = len(grid) - 3  # number of last axes that are summed over
    return pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=inputs,
            out_specs=outputs,
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch],
        ),
        out_shape=shapes,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 3 + ("arbitrary",) * sums
        ),
        cost_estimate=cost,
        interpret=interpret,
        name=f"attention_{kernel.func.__name__}",
    )


def _arranged(q, k, v, mask, sizes: Sizes):
    """Block states, bounds (B, 4, S), and q, k, v with heads first; all padded."""
    queries, slots = sizes.queries * sizes.query_blocks, sizes.keys * sizes.key_blocks
    mask = filled_mask(mask, queries)
    bounds = jnp.stack(jax.tree.leaves(mask), axis=1)
    q = _heads_first(q, queries)
    k, v = (_heads_first(x.astype(q.dtype), slots) for x in (k, v))
    return block_states(mask, slots, sizes.queries, sizes.keys), bounds, q, k, v


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
      blocks: queries and keys in a block; None: sizes that fit the hardware.
      interpret: run without a TPU, step by step.
    """
    queries, sizes = q.shape[1], sizes_of(q, k, blocks)
    states, bounds, q, k, v = _arranged(q, k, v, mask, sizes)
    grid, specs = _by_queries(sizes)
    again = 2 * sizes.query_blocks * sizes.parts  # keys and values are read for each query block
    rows = jax.ShapeDtypeStruct((*q.shape[:1], grid[1], sizes.heads, q.shape[2]), jnp.float32)
    run = _call(
        partial(forward_kernel, sizes=sizes),
        grid,
        [specs.bounds, specs.queries, specs.keys, specs.keys],
        [specs.queries, specs.rows],
        [like(q), rows],
        [(sizes.heads, sizes.head_dim, sizes.queries), *[(sizes.heads, sizes.queries)] * 2],
        sizes.cost(2, 2 * sizes.query_bytes(q.dtype) + again * sizes.key_bytes(q.dtype)),
        interpret,
    )
    out, log_sum = run(with_fetches(states), bounds, q, k, v)
    log_sum = log_sum.reshape(*q.shape[:2], -1)[:, :, :queries]
    return _slots_first(out, queries), log_sum


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
    queries, keys, sizes = q.shape[1], k.shape[1], sizes_of(q, k, blocks)
    rows = _rows(log_sum, sizes), _rows(mean, sizes)
    of_keys = k.dtype, v.dtype
    states, bounds, q, k, v = _arranged(q, k, v, mask, sizes)
    arrays = bounds, q, k, v, _heads_first(gradient, q.shape[2]), *rows
    grid, specs = _by_queries(sizes)
    again = 2 * sizes.query_blocks * sizes.parts
    of_queries = _call(
        partial(queries_kernel, sizes=sizes),
        grid,
        specs.backward,
        specs.queries,
        like(q),
        [(sizes.heads, sizes.head_dim, sizes.queries)],
        sizes.cost(3, 3 * sizes.query_bytes(q.dtype) + again * sizes.key_bytes(q.dtype)),
        interpret,
    )
    dq = of_queries(with_fetches(states), *arrays)
    grid, specs = _by_keys(sizes)
    again = 2 * sizes.key_blocks  # queries and gradient are read for each key block
    of_both = _call(
        partial(keys_kernel, sizes=sizes),
        grid,
        specs.backward,
        [specs.keys, specs.keys],
        [like(k), like(v)],
        [(sizes.keys, sizes.head_dim)] * 2,
        sizes.cost(4, again * sizes.query_bytes(q.dtype) + 4 * sizes.key_bytes(q.dtype)),
        interpret,
    )
    dk, dv = of_both(with_fetches(states.swapaxes(1, 2)), *arrays)
    dk, dv = (
        _slots_first(x, keys).astype(dtype) for x, dtype in zip((dk, dv), of_keys, strict=True)
    )
    return _slots_first(dq, queries), dk, dv
