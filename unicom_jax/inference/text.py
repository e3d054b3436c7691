"""Text generation with a KV cache, as one compiled loop."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Int32, Key

from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.module import Module, Params
from unicom_jax.models.transformer import KVCache


class Sampling(NamedTuple):
    """How a token is chosen. temperature 0 takes the likeliest; top_p keeps the smallest set of
    tokens that holds this much probability (Holtzman et al. 2020)."""

    temperature: float = 0.0
    top_p: float = 1.0


def choose(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], sampling: Sampling
) -> Int32[Array, " B"]:
    """One token per row of logits, by one key a row."""
    if sampling.temperature == 0.0:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / sampling.temperature
    if sampling.top_p < 1.0:
        logits = _keep_nucleus(logits, sampling.top_p)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _keep_nucleus(logits: jax.Array, top_p: float) -> jax.Array:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    before = jnp.cumsum(jax.nn.softmax(ordered, axis=-1), axis=-1) - jax.nn.softmax(ordered)
    inside = (before < top_p).at[..., 0].set(True)  # the likeliest is always kept
    kept = jnp.where(inside, ordered, jnp.inf)
    return jnp.where(logits < kept.min(axis=-1, keepdims=True), -jnp.inf, logits)


def generate(
    pathway: Module,
    params: Params,
    hidden: Float[Array, "B W"],
    cache: KVCache,
    lengths: Int[Array, " B"],
    next_positions: Int[Array, " B"],
    stop: Int[Array, " stops"],
    keys: Key[Array, " B"],
    *,
    start: int,
    max_tokens: int,
    sampling: Sampling,
) -> tuple[Int32[Array, "B {max_tokens}"], Int32[Array, " B"]]:
    """Continues B prefixes until each has produced a stop token or `max_tokens`.

    Args:
      hidden: state of each prefix's last slot.
      cache: holds the prefixes in slots [0, start), room for `max_tokens` behind.
      lengths: slots of each prefix in use; `next_positions`: where its text goes on.
      stop: token ids.
      keys: a row draws its own tokens, whatever the batch it is in.

    Returns:
      Tokens, the stop token included and -1 behind it, and how many there are.
    """
    rows = hidden.shape[0]
    zeros = jnp.zeros((rows, 1), jnp.int32)

    def run(token: jax.Array, index: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        """Feeds one token a row into slot start + index."""
        embedded = pathway.transformer.embed(params["transformer"], token[:, None])
        position = (next_positions + index)[:, None]
        mask = MaskIntervals(zeros, lengths[:, None], zeros + start, zeros + start + index + 1)
        out, cache = pathway.transformer(
            params["transformer"],
            embedded.astype(pathway.compute_dtype),
            jnp.stack([position, position], axis=-1),
            mask,
            cache,
            start + index,
        )
        return out[:, 0], cache

    def going(state) -> jax.Array:
        index, _, _, done, _ = state
        return (index < max_tokens) & ~jnp.all(done)

    def advance(state):
        index, hidden, cache, done, tokens = state
        logits = pathway.logits(params, hidden)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        token = choose(logits, step_keys, sampling)
        tokens = tokens.at[:, index].set(jnp.where(done, -1, token))
        done = done | jnp.isin(token, stop)
        hidden, cache = run(token, index, cache)
        return index + 1, hidden, cache, done, tokens

    state = (
        jnp.zeros((), jnp.int32),
        hidden,
        cache,
        jnp.zeros(rows, bool),
        jnp.full((rows, max_tokens), -1, jnp.int32),
    )
    tokens = jax.lax.while_loop(going, advance, state)[-1]
    return tokens, jnp.sum(tokens >= 0, axis=1)
