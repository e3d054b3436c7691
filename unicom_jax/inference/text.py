"""Text generation with a KV cache, as one compiled loop."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, Key, UInt32

from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.module import Module, Params
from unicom_jax.models.transformer import KVCache

GREEDY, PLAIN, FILTERED = "greedy", "plain", "filtered"  # how a token is chosen: `Sampling.mode`


class SamplingNumbers(NamedTuple):
    """The numbers of a `Sampling`: arguments of a program, not part of it."""

    temperature: float
    top_p: float
    top_k: int


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Attributes:
      temperature: 0 takes the likeliest token.
      top_p: of the tokens that `top_k` leaves, keeps the smallest set with at least this much
        probability (Holtzman et al. 2020).
      top_k: keeps this many of the likeliest tokens; 0: all.

    Raises:
      ValueError: a number out of its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:  # refuses NaN, too
            raise ValueError(f"temperature is {self.temperature}; give 0 (the likeliest) or more")
        if not 0.0 <= self.top_p <= 1.0:
            raise ValueError(f"top_p is {self.top_p}; give a share from 0 to 1")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; give a number of tokens, or 0 for all")

    @property
    def mode(self) -> str:
        """The static part, for which a program is compiled; the numbers are its arguments."""
        if self.temperature == 0.0:
            return GREEDY
        return FILTERED if self.top_p < 1.0 or self.top_k else PLAIN

    @property
    def numbers(self) -> SamplingNumbers:
        return SamplingNumbers(
            np.float32(self.temperature), np.float32(self.top_p), np.int32(self.top_k)
        )


class Tail(NamedTuple):
    """Where the text after each of B prefixes starts.

    Attributes:
      lengths: slots of each prefix in use, from 0.
      next_positions: rotary index of its next token.
      start: cache slot of the first written token, for all rows.
      places: the rows' places in the request, see `row_keys`.
      seed: the request's.
      stop: token ids that end a row.
    """

    lengths: Int[Array, " B"]
    next_positions: Int[Array, " B"]
    start: Int[Array, ""]
    places: Int[Array, " B"]
    seed: UInt32[Array, ""]
    stop: Int[Array, " stops"]


class Writing(NamedTuple):
    """Text that is being written after B prefixes.

    Attributes:
      count: tokens so far.
      hidden: state of each row's last slot, from which its next token is chosen.
      done: rows that have ended.
      tokens: what was written, padded with -1.
    """

    count: Int32[Array, ""]
    hidden: Float[Array, "B W"]
    cache: KVCache
    done: Bool[Array, " B"]
    tokens: Int32[Array, "B room"]


def row_keys(seed: UInt32[Array, ""], places: Int[Array, " B"]) -> Key[Array, " B"]:
    """A key from (seed, place in the request), so that no row's tokens depend on the batch."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), places)


def choose(
    logits: Float[Array, "B V"], keys: Key[Array, " B"], mode: str, numbers: SamplingNumbers
) -> Int32[Array, " B"]:
    """Chooses one token per row of logits, with one key per row."""
    if mode == GREEDY:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = logits / numbers.temperature
    if mode == FILTERED:
        logits = _keep_likeliest(logits, numbers)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _keep_likeliest(logits: jax.Array, numbers: SamplingNumbers) -> jax.Array:
    ordered = jnp.sort(logits, axis=-1, descending=True)
    count = jnp.where(numbers.top_k > 0, numbers.top_k, logits.shape[-1])
    ordered = jnp.where(jnp.arange(logits.shape[-1]) < count, ordered, -jnp.inf)
    shares = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(shares, axis=-1) - shares
    inside = (before < numbers.top_p) & jnp.isfinite(ordered)
    inside = inside.at[..., 0].set(True)  # the likeliest is always kept
    kept = jnp.where(inside, ordered, jnp.inf)
    return jnp.where(logits < kept.min(axis=-1, keepdims=True), -jnp.inf, logits)


def begin_writing(hidden: Float[Array, "B W"], cache: KVCache, room: int) -> Writing:
    """The state before anything is written; `room`: the most tokens per row."""
    rows = hidden.shape[0]
    return Writing(
        count=jnp.zeros((), jnp.int32),
        hidden=hidden,
        cache=cache,
        done=jnp.zeros(rows, bool),
        tokens=jnp.full((rows, room), -1, jnp.int32),
    )


def generate(
    pathway: Module,
    params: Params,
    writing: Writing,
    tail: Tail,
    until: Int[Array, ""],
    numbers: SamplingNumbers,
    mode: str,
) -> Writing:
    """Continues until every row has produced a stop token, or `until` tokens are written.

    The cache needs free slots for these from `tail.start` on. A row's stop token is its last token.
    """
    zeros = jnp.zeros_like(tail.lengths)[:, None]
    keys = row_keys(tail.seed, tail.places)

    def feed(token: jax.Array, state: Writing) -> tuple[jax.Array, KVCache]:
        """Reads one token per row, in slot start + count."""
        embedded = pathway.transformer.embed(params["transformer"], token[:, None])
        position = (tail.next_positions + state.count)[:, None]
        slot = tail.start + state.count
        mask = MaskIntervals(zeros, tail.lengths[:, None], zeros + tail.start, zeros + slot + 1)
        hidden, cache = pathway.transformer(
            params["transformer"],
            embedded.astype(pathway.compute_dtype),
            pathway.transformer.text_positions(position),
            mask,
            state.cache,
            slot,
        )
        return hidden[:, 0], cache

    def unfinished(state: Writing) -> jax.Array:
        return (state.count < until) & ~jnp.all(state.done)

    def advance(state: Writing) -> Writing:
        logits = pathway.logits(params, state.hidden)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.count)
        token = choose(logits, step_keys, mode, numbers)
        written = jnp.where(state.done, -1, token)
        tokens = jax.lax.dynamic_update_slice(state.tokens, written[:, None], (0, state.count))
        done = state.done | jnp.isin(token, tail.stop)
        hidden, cache = feed(token, state)
        return Writing(state.count + 1, hidden, cache, done, tokens)

    return jax.lax.while_loop(unfinished, advance, writing)
