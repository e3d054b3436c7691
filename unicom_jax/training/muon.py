"""Muon: the momentum of each weight matrix, made orthogonal; AdamW for everything else.

Update and state are those of `optax.contrib.muon` (Jordan et al. 2024; scaled as in Liu et al.
2025). What differs is how matrices that are split over several devices are assembled for the
Newton-Schulz iteration. With D devices that hold one tile of every matrix

    device   before         all-to-all        Newton-Schulz, local          all-to-all
      0      tile 0 of all  ───────────►  matrices 0, D, … whole  ───────────►  tile 0 of all
      1      tile 1 of all                matrices 1, …     whole               tile 1 of all

each device receives, twice, as many bytes as it holds. Left to itself, XLA gathers every matrix on
every device: D times the bytes and D times the work.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from unicom_jax.core.module import ParamSpec, Specs, iter_specs, map_specs
from unicom_jax.parallel.sharding import param_sharding

BETA = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x³, x⁵: steep at 0, then near 1 up to x = 1
STEPS = 5
RMS = 0.2  # root mean square of an update, as AdamW's, so that one learning rate suits both


def muon(
    learning_rate: optax.ScalarOrSchedule,
    specs: Specs,
    *,
    b1: float,
    b2: float,
    eps: float,
    mu_dtype: str = "float32",
) -> optax.GradientTransformationExtraArgs:
    """Muon for the weights of `is_kernel`, AdamW for all others; without weight decay.

    `update(grads, state, mesh=mesh)` computes each matrix on one of the devices that hold it.
    Without a mesh, weights are taken to be whole on one device.

    Args:
      learning_rate: learning rate of both.
      specs: specs of the trained weights.
      b1, b2: AdamW's decay rates; like Muon it uses Nesterov momentum.
      eps: epsilon of both.
      mu_dtype: dtype in which both store their first moment between updates.
    """
    matrices = optax.chain(
        scale_by_muon(specs, eps, mu_dtype),
        _scale_by_size(specs),
        optax.scale(RMS),
        optax.scale_by_learning_rate(learning_rate),
    )
    adam = {"b1": b1, "b2": b2, "eps": eps, "mu_dtype": mu_dtype}
    others = optax.adamw(learning_rate, **adam, weight_decay=0.0, nesterov=True)
    labels = map_specs(lambda spec: "muon" if is_kernel(spec) else "adam", specs)
    return optax.partition({"muon": matrices, "adam": others}, labels)


def is_kernel(spec: ParamSpec) -> bool:
    """Whether a weight is a linear layer's matrix, or a stack of them along `layers`. A table of
    positions along a line counts as one; tables of words do not."""
    return len(_sides(spec)) == 2 and "vocab" not in spec.axes


def longer_side(spec: ParamSpec) -> int:
    """The larger dimension of a kernel; the size of its updates grows with the square root."""
    return max(spec.shape[side] for side in _sides(spec))


def _sides(spec: ParamSpec) -> list[int]:
    return [i for i, axis in enumerate(spec.axes) if axis != "layers"]


def scale_by_muon(
    specs: Specs, eps: float, mu_dtype: str = "float32"
) -> optax.GradientTransformationExtraArgs:
    """Nesterov momentum, then `orthogonalize`."""
    known = dict(iter_specs(specs))

    # The state is optax's, including its unused copy of the coefficients, so that checkpoints
    # written with `optax.contrib.muon` can be resumed.
    def init(params: Any) -> optax.contrib.MuonState:
        return optax.contrib.MuonState(
            count=jnp.zeros((), jnp.int32),
            mu=optax.tree.zeros_like(params, dtype=mu_dtype),
            ns_coeffs=jnp.asarray(COEFFICIENTS),
        )

    def update(
        grads: Any, state: Any, params: Any = None, *, mesh: Mesh | None = None, **_: Any
    ) -> tuple[Any, optax.contrib.MuonState]:
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, optax.tree.cast(state.mu, jnp.float32), BETA, 1)
        ahead = jax.tree.map(
            lambda m, g: BETA * m + (1 - BETA) * g,
            optax.tree.bias_correction(mu, BETA, optax.safe_increment(count)),
            optax.tree.bias_correction(grads, BETA, count),
        )
        named, tree = jax.tree.flatten_with_path(ahead)
        leaves = [leaf for _, leaf in named]
        wanted = [known[tuple(key.key for key in path)] for path, _ in named]
        updates = orthogonalize(leaves, wanted, eps, mesh)
        kept = optax.tree.cast(mu, mu_dtype)
        return jax.tree.unflatten(tree, updates), state._replace(count=count, mu=kept)

    return optax.GradientTransformationExtraArgs(init, update)


def _scale_by_size(specs: Specs) -> optax.GradientTransformation:
    """Multiplies by the square root of a matrix's longer side: the mean square becomes about 1."""
    known = dict(iter_specs(specs))

    def scale(path: tuple[Any, ...], update: jax.Array) -> jax.Array:
        spec = known[tuple(key.key for key in path)]
        return math.sqrt(longer_side(spec)) * update

    return optax.stateless(lambda updates, _: jax.tree.map_with_path(scale, updates))


# ---- matrices in parts --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a weight becomes a stack of matrices (N, rows, columns), rows ≤ columns.

    Attributes:
      order: order of the weight's axes: layers, rows, columns.
      row_axes, column_axes: the mesh axes that split rows and columns.
      devices: number of tiles of each matrix.
      place: the sharding of the weight.
    """

    order: tuple[int, ...]
    row_axes: tuple[str, ...]
    column_axes: tuple[str, ...]
    devices: int
    place: PartitionSpec

    @classmethod
    def of(cls, spec: ParamSpec, mesh: Mesh | None) -> Layout:
        place = [()] * len(spec.shape) if mesh is None else _split_axes(spec, mesh)
        # Transposed where this makes it wide, or alike with other matrices of its shape.
        row, column = sorted(_sides(spec), key=lambda side: (spec.shape[side], place[side]))
        layers = (i for i, axis in enumerate(spec.axes) if axis == "layers")
        devices = math.prod(mesh.shape[axis] for axis in place[row] + place[column])
        order = (*layers, row, column)
        return cls(order, place[row], place[column], devices, PartitionSpec(*place))

    def stack(self, weight: jax.Array) -> jax.Array:
        weight = weight.transpose(self.order)
        return weight.reshape(-1, *weight.shape[-2:])

    def unstack(self, matrices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        ordered = matrices.reshape([shape[axis] for axis in self.order])
        return ordered.transpose([self.order.index(axis) for axis in range(len(shape))])


def _split_axes(spec: ParamSpec, mesh: Mesh) -> list[tuple[str, ...]]:
    """For each of a weight's axes, the mesh axes of more than one device that split it."""
    places = param_sharding(spec, mesh).spec
    axes = [(place,) if isinstance(place, str) else place or () for place in places]
    return [tuple(axis for axis in some if mesh.shape[axis] > 1) for some in axes]


def orthogonalize(
    weights: Sequence[jax.Array],
    specs: Sequence[ParamSpec],
    eps: float,
    mesh: Mesh | None,
) -> list[jax.Array]:
    """`newton_schulz` of every matrix in `weights`, which are sharded as `param_sharding` says.

    A stack is processed in rounds of as many matrices as there are devices. Matrices left over
    share rounds with those of other stacks whose tiles have the same shape; zeros fill the last
    round. A matrix with a unique shape is exchanged with zeros only, and one device computes it.
    """
    if not weights:
        return []
    layouts = [Layout.of(spec, mesh) for spec in specs]

    def local(tiles: list[jax.Array]) -> list[jax.Array]:
        stacks = [layout.stack(tile) for layout, tile in zip(layouts, tiles, strict=True)]
        done: list[list[jax.Array]] = [[] for _ in stacks]
        leftovers = defaultdict(list)
        for i, (layout, stack) in enumerate(zip(layouts, stacks, strict=True)):
            rest = len(stack) % layout.devices
            if whole_rounds := len(stack) - rest:
                done[i].append(_exchanged(stack[:whole_rounds], layout, eps, mesh))
            if rest:
                kind = layout.row_axes, layout.column_axes, stack.shape[1:]
                leftovers[kind].append((i, stack[whole_rounds:]))
        for members in leftovers.values():
            together = jnp.concatenate([rest for _, rest in members])
            together = _exchanged(together, layouts[members[0][0]], eps, mesh)
            ends = itertools.accumulate(len(rest) for _, rest in members)
            for (i, rest), end in zip(members, ends, strict=True):
                done[i].append(together[end - len(rest) : end])
        return [
            layout.unstack(jnp.concatenate(parts), tile.shape)
            for layout, parts, tile in zip(layouts, done, tiles, strict=True)
        ]

    if mesh is None:
        return local(list(weights))
    places = [layout.place for layout in layouts]
    return jax.shard_map(local, mesh=mesh, in_specs=(places,), out_specs=places)(list(weights))


def _exchanged(tiles: jax.Array, layout: Layout, eps: float, mesh: Mesh | None) -> jax.Array:
    """Tiles (N, r, c) of N matrices -> the same tiles of their orthogonal matrices."""
    if layout.devices == 1:
        return newton_schulz(tiles, eps)
    axes, (count, r, c) = layout.row_axes + layout.column_axes, tiles.shape
    high = math.prod(mesh.shape[axis] for axis in layout.row_axes)
    each = -(-count // layout.devices)
    padded = jnp.pad(tiles, ((0, each * layout.devices - count), (0, 0), (0, 0)))
    # Otherwise XLA:CPU would merge the padding away and refuse operands of several layouts.
    padded = jax.lax.optimization_barrier(padded)
    parts = jax.lax.all_to_all(padded, axes, split_axis=0, concat_axis=0, tiled=True)
    # Tiles are ordered by device: (high · wide · each, r, c) -> (each, rows, columns).
    parts = parts.reshape(high, -1, each, r, c).transpose(2, 0, 3, 1, 4)
    whole = newton_schulz(parts.reshape(each, high * r, -1), eps)
    parts = whole.reshape(each, high, r, -1, c).transpose(1, 3, 0, 2, 4).reshape(-1, r, c)
    return jax.lax.all_to_all(parts, axes, split_axis=0, concat_axis=0, tiled=True)[:count]


def newton_schulz(matrices: jax.Array, eps: float) -> jax.Array:
    """Moves all singular values of matrices (N, rows, columns), rows ≤ columns, to about 1.

    x ← a x + (b A + c A²) x with A = x xᵀ, from x of Frobenius norm 1. Zero stays zero.
    """
    a, b, c = COEFFICIENTS

    def step(_: int, x: jax.Array) -> jax.Array:
        gram = x @ x.T
        return a * x + (b * gram + c * gram @ gram) @ x

    def one(x: jax.Array) -> jax.Array:
        # A loop, so that compiled code contains one step; on CPUs it also runs faster.
        return jax.lax.fori_loop(0, STEPS, step, x / (jnp.linalg.norm(x) + eps))

    return jax.vmap(one)(matrices)
