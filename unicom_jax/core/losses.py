"""Losses as (sum, count) pairs, so that terms stay exact under packing and accumulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Real

LossTerm = tuple[Float32[Array, ""], float | Real[Array, ""]]  # (weighted sum, sum of weights)
LossTerms = Mapping[str, LossTerm]
# (weights of the head, hidden) -> logits
Logits = Callable[[Any, Float[Array, "*B W"]], Float32[Array, "*B V"]]
Pieces = tuple[jax.Array, jax.Array, jax.Array]  # hidden, targets, weights

# Where nothing else is asked for, rows are cut into so many chunks, of so many slots at least.
CHUNKS, LEAST_CHUNK = 8, 64


def mean(term: LossTerm) -> Float32[Array, ""]:
    """sum / count, 0 for an empty term."""
    total, count = term
    return total / jnp.maximum(count, 1e-8)


def reported(terms: LossTerms) -> dict[str, Float32[Array, ""]]:
    """The mean of each term. A part of a term, `<term>/<part>`, that nothing belongs to is NaN: it
    is not known, where an empty term is 0."""
    return {
        name: jnp.where(term[1] > 0, mean(term), jnp.nan) if "/" in name else mean(term)
        for name, term in terms.items()
    }


def soft_cap(logits: Float[Array, "*shape"], cap: float) -> Float[Array, "*shape"]:
    """cap · tanh(logits / cap), within ±cap (Gemma 2, arXiv 2408.00118 §2); 0: as they are."""
    return cap * jnp.tanh(logits / cap) if cap else logits


def text_terms(
    logits: Logits,
    head: Any,
    hidden: Float[Array, "B S W"],
    targets: Int[Array, "B S"],
    weights: Float32[Array, "B S"],
    chunk: int = 0,
    z_loss: float = 0.0,
) -> LossTerms:
    """Next-token cross-entropy and accuracy, from logits of the predicted slots alone.

    The slots of a row that predict a token are moved to its front, rows are cut into chunks, and
    chunks in which no row predicts anything are skipped. Logits exist for one chunk at a time, in
    the backward pass too: where a gradient is asked for, each chunk's is taken right behind its
    loss, and the backward pass only scales it (as in Liger's fused loss, Hsu et al. 2024).

    Args:
      logits: called as logits(head, hidden).
      head: the weights that it reads, and no others: each gets a gradient of its own size.
      hidden: states after the final norm.
      weights: of the targets, 0 where nothing is predicted. No gradient reaches them.
      chunk: at most so many slots of a row at a time; 0: an eighth of a row, 64 slots at least.
      z_loss: factor of log² Z, Z the sum of exp(logits), which keeps the logits' offset near 0
        (PaLM, Chowdhery et al. 2022 §5: 1e-4).

    Returns:
      `text` (nats) and `text_accuracy` terms. A target that shares the highest logit is a hit. With
      `z_loss`, `text` is the cross-entropy plus z_loss · log² Z, and `text_z` (log² Z) says how
      much of it that is.
    """
    order = jnp.argsort(weights == 0, axis=1, stable=True)
    total, (hits, squares) = _sums(
        logits,
        _chunk_count(order.shape[1], chunk),
        z_loss,
        head,
        hidden,
        targets,
        weights,
        order,
    )
    count = jnp.sum(weights)
    terms = {"text": (total, count), "text_accuracy": (hits, count)}
    return {**terms, "text_z": (squares, count)} if z_loss else terms


def _chunk_count(slots: int, chunk: int) -> int:
    return -(-slots // chunk) if chunk else max(1, min(CHUNKS, slots // LEAST_CHUNK))


def _chunk_sums(
    logits: Logits,
    z_loss: float,
    head: Any,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Weighted sums of -log p(target) + z_loss · log² Z, and of hits and log² Z, all slots at
    once."""
    scores = logits(head, hidden)
    # Sums and maxima over the vocabulary, no look-up: each device then works on its own part of it.
    hot = targets[..., None] == jnp.arange(scores.shape[-1])
    picked = jnp.sum(jnp.where(hot, scores, 0.0), axis=-1)
    log_z = jax.nn.logsumexp(scores, axis=-1)
    loss, square = log_z - picked, jnp.square(log_z)
    if z_loss:
        loss = loss + z_loss * square
    seen = jnp.stack([picked >= jnp.max(scores, axis=-1), jax.lax.stop_gradient(square)])
    return jnp.sum(loss * weights), jnp.sum(seen * weights, axis=range(1, seen.ndim))


def _in_chunks(chunks: int, order: jax.Array, pieces: Pieces) -> tuple[Pieces, jax.Array]:
    """(B, S, ...) arrays in `order`, as (chunks, B, S / chunks, ...), and which chunks are used."""
    padding = -order.shape[1] % chunks
    inside = jnp.pad(jnp.ones_like(order), ((0, 0), (0, padding)))
    order = jnp.pad(order, ((0, 0), (0, padding)))

    def split(x: jax.Array) -> jax.Array:
        x = jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)
        return jnp.moveaxis(x.reshape(x.shape[0], chunks, -1, *x.shape[2:]), 1, 0)

    hidden, targets, weights = map(split, pieces)
    weights = weights * jnp.moveaxis(inside.reshape(len(order), chunks, -1), 1, 0)
    return (hidden, targets, weights), jnp.any(weights != 0, axis=(1, 2))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _sums(
    logits: Logits,
    chunks: int,
    z_loss: float,
    head: Any,
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    order: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    def step(total: tuple, chunk: tuple) -> tuple[tuple, None]:
        pieces, used = chunk

        def add(total: tuple) -> tuple:
            return jax.tree.map(jnp.add, total, _chunk_sums(logits, z_loss, head, *pieces))

        return jax.lax.cond(used, add, lambda total: total, total), None

    start = (jnp.zeros(()), jnp.zeros(2))
    return jax.lax.scan(step, start, _in_chunks(chunks, order, (hidden, targets, weights)))[0]


def _sums_forward(logits, chunks, z_loss, head, hidden, targets, weights, order):
    gradient = jax.value_and_grad(partial(_chunk_sums, logits, z_loss), (0, 1), has_aux=True)

    def step(total: tuple, chunk: tuple) -> tuple[tuple, jax.Array]:
        pieces, used = chunk

        def add(total: tuple) -> tuple[tuple, jax.Array]:
            sums, (head_gradient, hidden_gradient) = gradient(head, *pieces)
            return jax.tree.map(jnp.add, total, (*sums, head_gradient)), hidden_gradient

        return jax.lax.cond(used, add, lambda total: (total, jnp.zeros_like(pieces[0])), total)

    start = (jnp.zeros(()), jnp.zeros(2), jax.tree.map(jnp.zeros_like, head))
    (total, seen, head_gradient), hidden_gradient = jax.lax.scan(
        step, start, _in_chunks(chunks, order, (hidden, targets, weights))
    )
    return (total, seen), (head_gradient, hidden_gradient, order)


def _sums_backward(logits, chunks, z_loss, residuals, gradient):
    head_gradient, hidden_gradient, order = residuals
    scale, _ = gradient  # what is only reported has no gradient
    rows, slots = order.shape
    hidden_gradient = jnp.moveaxis(hidden_gradient, 0, 1).reshape(
        rows, -1, hidden_gradient.shape[-1]
    )
    place = jnp.argsort(order, axis=1)
    hidden_gradient = jnp.take_along_axis(hidden_gradient, place[..., None], axis=1)
    head_gradient, hidden_gradient = jax.tree.map(
        lambda x: (scale * x).astype(x.dtype), (head_gradient, hidden_gradient)
    )
    return head_gradient, hidden_gradient, None, None, None


_sums.defvjp(_sums_forward, _sums_backward)
