"""Losses as (sum, count) pairs, so that terms stay exact under packing and accumulation."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

LossTerm = tuple[jax.Array, jax.Array]  # (weighted sum, sum of weights), fp32 scalars
LossTerms = Mapping[str, LossTerm]


def mean(term: LossTerm) -> jax.Array:
    """sum / count, 0 for an empty term."""
    total, count = term
    return total / jnp.maximum(count, 1e-8)


def text_terms(
    logits: Callable[[jax.Array], jax.Array],
    hidden: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
    chunk: int = 0,
) -> LossTerms:
    """Next-token cross-entropy and accuracy.

    Args:
      logits: maps hidden (..., W) to fp32 logits (..., V).
      hidden: (B, S, W) states after the final norm.
      targets: (B, S) int32; `weights`: (B, S) fp32, 0 where nothing is predicted.
      chunk: slots per chunk; logits of more than `chunk` slots of a row never exist at once, and
        the backward pass computes them anew. 0 takes all slots at once. Must divide S.

    Returns:
      `text` (nats) and `text_accuracy` terms.
    """

    def terms(hidden: jax.Array, targets: jax.Array, weights: jax.Array):
        scores = logits(hidden)
        picked = jnp.take_along_axis(scores, targets[..., None], axis=-1)[..., 0]
        nll = jax.nn.logsumexp(scores, axis=-1) - picked
        hits = (jnp.argmax(scores, axis=-1) == targets).astype(jnp.float32)
        return jnp.sum(nll * weights), jnp.sum(hits * weights)

    slots = hidden.shape[1]
    if chunk == 0 or chunk >= slots:
        nll, hits = terms(hidden, targets, weights)
    else:
        if slots % chunk:
            raise ValueError(
                f"text loss chunk {chunk} does not divide {slots} slots; choose a divisor"
            )

        def split(x: jax.Array) -> jax.Array:
            chunks = x.reshape(x.shape[0], slots // chunk, chunk, *x.shape[2:])
            return jnp.moveaxis(chunks, 1, 0)

        def add(total, piece):
            nll, hits = jax.checkpoint(terms)(*piece)
            return (total[0] + nll, total[1] + hits), None

        pieces = (split(hidden), split(targets), split(weights))
        (nll, hits), _ = jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), pieces)
    count = jnp.sum(weights)
    return {"text": (nll, count), "text_accuracy": (hits, count)}
