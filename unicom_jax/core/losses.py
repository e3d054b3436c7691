"""Losses as (sum, count) pairs, so that terms stay exact under packing and accumulation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Float32, Int, Real

from unicom_jax.core.activations import (
    EMBED,
    PICTURES,
    TENSOR,
    MeshAxes,
    current_mesh,
    fitting,
)
from unicom_jax.core.gradients import gradient_dtype
from unicom_jax.core.parts import sum_by_part

LossTerm = tuple[Float32[Array, ""], float | Real[Array, ""]]  # (weighted sum, sum of weights)
LossTerms = Mapping[str, LossTerm]
# (weights of the head, hidden) -> logits
Logits = Callable[[Any, Float[Array, "*B W"]], Float32[Array, "*B V"]]
Pieces = tuple[jax.Array, ...]  # hidden, targets, weights, and the parts if requested

# By default rows are cut into `CHUNKS` chunks of at least `LEAST_CHUNK` slots.
CHUNKS, LEAST_CHUNK = 8, 64


def mean(term: LossTerm) -> Float32[Array, ""]:
    """sum / count, 0 for an empty term."""
    total, count = term
    return total / jnp.maximum(count, 1e-8)


def reported(terms: LossTerms) -> dict[str, Float32[Array, ""]]:
    """The mean of each term. An empty term is 0; an empty part of a term, `<term>/<part>`, is NaN,
    since its mean is unknown."""
    return {
        name: jnp.where(term[1] > 0, mean(term), jnp.nan) if "/" in name else mean(term)
        for name, term in terms.items()
    }


def soft_cap(logits: Float[Array, "*shape"], cap: float) -> Float[Array, "*shape"]:
    """cap · tanh(logits / cap), within ±cap (Gemma 2, arXiv 2408.00118 §2); 0: no cap."""
    return cap * jnp.tanh(logits / cap) if cap else logits


def text_terms(
    logits: Logits,
    head: Any,
    hidden: Float[Array, "B S W"],
    targets: Int[Array, "B S"],
    weights: Float32[Array, "B S"],
    chunk: int = 0,
    z_loss: float = 0.0,
    specs: Any = None,
    of: Bool[Array, "B S P"] | None = None,
) -> LossTerms:
    """Next-token cross-entropy and accuracy, from logits of the predicting slots alone.

    The slots that predict a token are moved to the front, all slots are cut into chunks, and chunks
    in which nothing is predicted are skipped. Logits exist for one chunk at a time, in the backward
    pass too: when a gradient is needed, each chunk's is computed right after its loss, and the
    backward pass only scales it (as in Liger's fused loss, Hsu et al. 2024).

    On a mesh each device handles its own rows, and skips chunks whatever the others predict. The
    head's weights are gathered once, in the dtype of `hidden`. Their gradient is summed over chunks
    in fp32 and over devices once, in the dtype that `core.gradients` sets.

    Args:
      logits: called as logits(head, hidden).
      head: the weights that `logits` reads, and no others: each gets a gradient of its full size.
      hidden: states after the final norm.
      weights: weights of the targets, 0 where nothing is predicted. No gradient reaches them.
      chunk: the most slots of a row in a chunk; 0: an eighth of a row, but at least 64.
      z_loss: factor of log² Z, where Z is the sum of exp(logits); it keeps the logits' offset near
        0 (PaLM, Chowdhery et al. 2022 §5: 1e-4).
      specs: the head's `ParamSpec`s. On a mesh the gradient of a weight is then scattered as its
        "embed" dimension is sharded; None: every device gets the whole sum.
      of: which part of a mixture each slot belongs to (`core.parts.membership`).

    Returns:
      `text` (nats) and `text_accuracy` terms. A target that shares the highest logit is a hit. With
      `z_loss`, `text` is the cross-entropy plus z_loss · log² Z, and `text_z` reports log² Z. With
      `of`, `text/parts` has the sums and counts of `text` by part, (P,).
    """
    parts = 0 if of is None else of.shape[-1]
    work = _Work(logits, _chunk_count(hidden.shape[1], chunk), z_loss, _axes(head, specs), parts)
    pieces = (hidden, targets, weights, *(() if of is None else (of,)))
    total, seen = _sums(work, head, *map(jnp.asarray, pieces))
    count = jnp.sum(weights)
    terms = {"text": (total, count), "text_accuracy": (seen[0], count)}
    if of is not None:
        terms["text/parts"] = seen[2:], sum_by_part(weights, of)
    return {**terms, "text_z": (seen[1], count)} if z_loss else terms


@dataclasses.dataclass(frozen=True)
class _Work:
    """`axes`: the logical names of the dimensions of each of the head's weights. `parts`: number
    of parts that have sums of their own."""

    logits: Logits
    chunks: int
    z_loss: float
    axes: tuple[tuple[str | None, ...], ...]
    parts: int = 0

    @property
    def zeros(self) -> tuple[jax.Array, jax.Array]:
        """Sums over no slots."""
        return jnp.zeros(()), jnp.zeros(2 + self.parts)


def _axes(head: Any, specs: Any) -> tuple[tuple[str | None, ...], ...]:
    if specs is None:
        return tuple((None,) * leaf.ndim for leaf in jax.tree.leaves(head))
    return tuple(spec.axes for spec in jax.tree.leaves(specs))


def _chunk_count(slots: int, chunk: int) -> int:
    return -(-slots // chunk) if chunk else max(1, min(CHUNKS, slots // LEAST_CHUNK))


def _chunk_sums(
    logits: Logits,
    z_loss: float,
    head: Any,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    of: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sums of -log p(target) + z_loss · log² Z, of hits, of log² Z and of the loss by
    part, over all slots at once."""
    scores = logits(head, hidden)
    # Sums and maxima over the vocabulary, no look-up, so each device works on its own part of it.
    hot = targets[..., None] == jnp.arange(scores.shape[-1])
    picked = jnp.sum(jnp.where(hot, scores, 0.0), axis=-1)
    log_z = jax.nn.logsumexp(scores, axis=-1)
    loss, square = log_z - picked, jnp.square(log_z)
    if z_loss:
        loss = loss + z_loss * square
    seen = jnp.stack([picked >= jnp.max(scores, axis=-1), jax.lax.stop_gradient(square)])
    sums = jnp.sum(seen * weights, axis=range(1, seen.ndim))
    if of is not None:
        sums = jnp.concatenate([sums, sum_by_part(jax.lax.stop_gradient(loss * weights), of)])
    return jnp.sum(loss * weights), sums


def _front_first(chunks: int, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Indices of the slots of weights (B, S), predicting ones first, as (chunks, B S / chunks).

    Also which of them are real slots: the last chunk may be padded.
    """
    order = jnp.argsort(weights.reshape(-1) == 0, stable=True)
    padding = -len(order) % chunks
    real = jnp.pad(jnp.ones_like(order), (0, padding))
    return jnp.pad(order, (0, padding)).reshape(chunks, -1), real.reshape(chunks, -1)


def _over_chunks(work: _Work, one_chunk: Callable, start: Any, skipped: Any, pieces: Pieces):
    """Adds up `one_chunk(*pieces of a chunk) -> (sums, output)` over the chunks that predict.

    Args:
      skipped: the output of a chunk that is skipped.
      pieces: (B, S, ...) each.

    Returns:
      The sums and the outputs, in the order of the slots (B S, ...).
    """
    hidden, targets, weights, *rest = (x.reshape(-1, *x.shape[2:]) for x in pieces)
    order, real = _front_first(work.chunks, pieces[2])

    def step(total: tuple, chunk: tuple) -> tuple[tuple, Any]:
        places, real = chunk
        weight = weights[places] * real

        def add(total: tuple) -> tuple:
            of = (x[places] for x in rest)
            sums, output = one_chunk(hidden[places], targets[places], weight, *of)
            return jax.tree.map(jnp.add, total, sums), output

        return jax.lax.cond(jnp.any(weight != 0), add, lambda total: (total, skipped), total)

    total, outputs = jax.lax.scan(step, start, (order, real))
    back = jnp.argsort(order.reshape(-1)[: len(weights)])
    return total, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[back], outputs)


def _local_sums(work: _Work, head: Any, *pieces: jax.Array) -> tuple[jax.Array, jax.Array]:
    def one_chunk(*pieces: jax.Array) -> tuple[tuple, None]:
        return _chunk_sums(work.logits, work.z_loss, head, *pieces), None

    return _over_chunks(work, one_chunk, work.zeros, None, pieces)[0]


def _local_gradients(work: _Work, head: Any, *pieces: jax.Array) -> tuple:
    """The result of `_chunk_sums`, and fp32 gradients of the head and of the hidden states."""
    sums = partial(_chunk_sums, work.logits, work.z_loss)
    gradient = jax.value_and_grad(sums, (0, 1), has_aux=True)

    def one_chunk(*pieces: jax.Array) -> tuple[tuple, jax.Array]:
        # fp32 weights get fp32 gradients. Within a chunk XLA undoes the two casts.
        wide = jax.tree.map(lambda w: w.astype(jnp.float32), head)
        sums, (head_gradient, hidden_gradient) = gradient(wide, *pieces)
        return (*sums, head_gradient), hidden_gradient

    hidden, chunks = pieces[0], work.chunks
    skipped = jnp.zeros((-(-math.prod(hidden.shape[:2]) // chunks), hidden.shape[2]), hidden.dtype)
    zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), head)
    start = (*work.zeros, zeros)
    total, hidden_gradient = _over_chunks(work, one_chunk, start, skipped, pieces)
    return total[:2], total[2], hidden_gradient.reshape(hidden.shape)


def _on_devices(work: _Work, local: Callable, head: Any, pieces: Pieces, gradients: bool) -> Any:
    """`local(work, head, *pieces)` on each device's own rows, with sums taken over all devices."""
    dtype, mesh = pieces[0].dtype, current_mesh()
    # Weights rounded before they are gathered take half the bytes.
    head = jax.tree.map(lambda w: w.astype(dtype), head)
    devices = () if mesh is None else fitting(PICTURES, len(pieces[0]), mesh)
    if not devices:
        return local(work, head, *pieces)

    def run(head: Any, *pieces: jax.Array) -> Any:
        out = local(work, head, *pieces)  # every device has the whole head
        if not gradients:
            return jax.lax.psum(out, devices)
        sums, head_gradient, hidden_gradient = out
        rounded = jax.tree.map(lambda x: x.astype(gradient_dtype(dtype))[None], head_gradient)
        return jax.lax.psum(sums, devices), rounded, hidden_gradient

    everywhere, own = PartitionSpec(), PartitionSpec(devices)
    out = jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(everywhere, *(own for _ in pieces)),
        out_specs=(everywhere, own, own) if gradients else everywhere,
        axis_names=frozenset(devices),  # XLA splits the vocabulary over `tensor`
        check_vma=False,
    )(head, *pieces)
    if not gradients:
        return out
    sums, head_gradient, hidden_gradient = out
    leaves, treedef = jax.tree.flatten(head_gradient)
    summed = [_scatter(*pair, devices, mesh) for pair in zip(leaves, work.axes, strict=True)]
    return sums, jax.tree.unflatten(treedef, summed), hidden_gradient


def _scatter(
    parts: jax.Array, axes: tuple[str | None, ...], devices: MeshAxes, mesh: AbstractMesh
) -> jax.Array:
    """The sum of a weight's gradient over `devices`, (devices, *shape), sharded as the weight is.

    This is a separate program over all axes of the mesh: in a program that leaves `tensor` to XLA,
    XLA would gather what is scattered here.
    """
    shape = parts.shape[1:]
    over = {"embed": fitting(EMBED, shape[axes.index("embed")], mesh)} if "embed" in axes else {}
    over = {name: names for name, names in over.items() if names and set(names) <= set(devices)}
    if "vocab" in axes:
        over["vocab"] = fitting(TENSOR, shape[axes.index("vocab")], mesh)
    placed = [over.get(name, ()) for name in axes]

    def run(part: jax.Array) -> jax.Array:
        part, rest = part[0], devices
        if names := over.get("embed"):
            at = axes.index("embed")
            part = jax.lax.psum_scatter(part, names, scatter_dimension=at, tiled=True)
            rest = tuple(axis for axis in devices if axis not in names)
        return jax.lax.psum(part, rest) if rest else part

    kept = [names if name == "vocab" else () for name, names in zip(axes, placed, strict=True)]
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=PartitionSpec(devices, *kept),
        out_specs=PartitionSpec(*placed),
        check_vma=False,
    )(parts)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sums(work: _Work, head: Any, *pieces: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _on_devices(work, _local_sums, head, pieces, gradients=False)


def _sums_forward(work, head, *pieces):
    sums, *gradients = _on_devices(work, _local_gradients, head, pieces, gradients=True)
    like = jax.tree.map(lambda w: jnp.zeros((0,), w.dtype), head)
    return sums, (*gradients, like)


def _sums_backward(work, residuals, gradient):
    head_gradient, hidden_gradient, like = residuals
    scale, _ = gradient  # reported values have no gradient
    head_gradient = jax.tree.map(lambda x, w: (scale * x).astype(w.dtype), head_gradient, like)
    others = (None,) * (3 if work.parts else 2)  # targets, weights and parts have no gradient
    return head_gradient, (scale * hidden_gradient).astype(hidden_gradient.dtype), *others


_sums.defvjp(_sums_forward, _sums_backward)
