"""Rewards: functions (frozen, originals, samples) -> (B,), the higher the better.

`frozen` has trees of frozen weights by name, which some rewards do not need. Rewards that are
computed on the host (the exact judge) are called from the compiled program, by each device for its
own rows.
"""

from __future__ import annotations

import dataclasses
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int

from data_pipelines.images import unpatchify
from data_pipelines.scenes.agreement import Account, Agreement, agreement, seen_in
from data_pipelines.scenes.facts import check
from data_pipelines.scenes.judge import read_scene
from data_pipelines.scenes.language import CaptionError, parse
from unicom_jax.core.activations import on_own_pictures
from unicom_jax.core.grids import token_mask
from unicom_jax.core.module import Params
from unicom_jax.core.pixels import to_bytes, to_unit
from unicom_jax.models.vision_encoder import VisionEncoder
from unicom_jax.rl.samples import Originals, Samples

Reward = Callable[[Params, Originals, Samples], Float[Array, " B"]]
# (frozen, patches in [-1, 1], grids) -> normalised latents
Encode = Callable[[Params, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class FeatureCosine:
    """Cosine of the pooled features of the original and the drawing ("UAE": arXiv 2509.09666).

    Attributes:
      vision: the encoder, whose weights are `frozen[weights]`.
    """

    vision: VisionEncoder
    weights: str

    def __call__(self, frozen: Params, originals: Originals, samples: Samples) -> jax.Array:
        # A drawn picture counts as it would be stored: rounded to bytes.
        both = (to_unit(x) for x in (originals.patches, to_bytes(samples.patches)))
        one, other = (self._pooled(frozen[self.weights], x, originals.grids) for x in both)
        norms = jnp.linalg.norm(one, axis=-1) * jnp.linalg.norm(other, axis=-1)
        return jnp.sum(one * other, axis=-1) / jnp.maximum(norms, 1e-12)

    def _pooled(self, weights: Params, patches: jax.Array, grids: jax.Array) -> jax.Array:
        features = self.vision(weights, patches, grids)
        return self.vision.pool(weights, features, grids).astype(jnp.float32)


def pixel_distance(frozen: Params, originals: Originals, samples: Samples) -> Float32[Array, " B"]:
    """Minus the mean squared difference of pixels in [-1, 1]."""
    del frozen
    real = token_mask(originals.grids, originals.patches.shape[1])
    difference = to_unit(originals.patches) - to_unit(to_bytes(samples.patches))
    return -_mean_square(difference, real)


@dataclasses.dataclass(frozen=True)
class LatentDistance:
    """Minus the mean squared difference of normalised latents, of `pool` x `pool` patches each."""

    encode: Encode
    pool: int = 1

    def __call__(self, frozen: Params, originals: Originals, samples: Samples) -> jax.Array:
        clean = self.encode(frozen, to_unit(originals.patches), originals.grids)
        real = token_mask(originals.grids // self.pool, clean.shape[1])
        return -_mean_square(clean - samples.latents, real)


def _mean_square(difference: jax.Array, real: jax.Array) -> jax.Array:
    squares = jnp.square(difference.astype(jnp.float32)).mean(-1)
    return jnp.sum(jnp.where(real, squares, 0.0), axis=1) / jnp.maximum(real.sum(axis=1), 1)


def by_chance(frozen: Params, originals: Originals, samples: Samples) -> Float32[Array, " B"]:
    """A random number in [0, 1): a control that says nothing about the samples."""
    del frozen, originals
    return samples.chance


# ---- on the host ------------------------------------------------------------------------------


def on_host(score: Callable[..., np.ndarray], *rows: jax.Array) -> Float32[Array, " B"]:
    """Calls `score(*rows) -> (B,)`, a function of NumPy arrays, while a compiled program runs.

    It must be a pure function that treats each row separately: each device calls it with its own
    rows.
    """

    def call(_: Any, *own: jax.Array) -> jax.Array:
        shape = jax.ShapeDtypeStruct((own[0].shape[0],), jnp.float32)
        return jax.pure_callback(_scored(score), shape, *own, vmap_method="sequential")

    return on_own_pictures(call, {}, *rows)


def _scored(score: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda *rows: np.asarray(score(*map(np.asarray, rows)), np.float32)


@dataclasses.dataclass(frozen=True)
class ScenesJudge:
    """How far the judge reads the same in the drawing as in the original: facts kept, as a share of
    those kept, lost and invented. For Scenes only."""

    patch: int

    def __call__(self, frozen: Params, originals: Originals, samples: Samples) -> jax.Array:
        del frozen
        drawn = to_bytes(samples.patches)
        return on_host(self._scores, originals.patches, drawn, originals.grids)

    def _scores(self, originals: np.ndarray, drawn: np.ndarray, grids: np.ndarray) -> np.ndarray:
        pairs = zip(originals, drawn, grids, strict=True)
        return np.array(
            [
                agreement(*(read_account(one, grid, self.patch) for one in (true, made))).score
                for true, made, grid in pairs
            ]
        )


@dataclasses.dataclass(frozen=True)
class CaptionDrawn:
    """1 if the judge finds in the drawing all that its caption says and no other object, else 0, as
    in Scenes-GenEval; 0 for a caption outside the grammar of Scenes.

    Attributes:
      decode: turns the token ids of a caption into text.
      patch: side of a patch in pixels.
    """

    decode: Callable[[list[int]], str]
    patch: int

    def __call__(self, frozen: Params, originals: Originals, samples: Samples) -> jax.Array:
        del frozen
        return on_host(self._scores, to_bytes(samples.patches), originals.grids, samples.tokens)

    def _scores(self, drawn: np.ndarray, grids: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        rows = zip(drawn, grids, tokens, strict=True)
        return np.array([self._holds(words, made, grid) for made, grid, words in rows])

    def _holds(self, words: np.ndarray, made: np.ndarray, grid: np.ndarray) -> bool:
        try:
            claimed = parse(self.decode(words[words >= 0].tolist()))
        except CaptionError:
            return False
        reading = read_scene(picture_of(made, grid, self.patch))
        return check(claimed, reading.objects, reading.background)[0]


@dataclasses.dataclass(frozen=True)
class CaptionFacts:
    """How far a caption of Scenes agrees with what the judge reads in the original.

    Attributes:
      decode: turns the token ids of a caption into text.
      patch: side of a patch in pixels.
      score: compares a text with the truth: `score_long` or `score_caption`.
    """

    decode: Callable[[list[int]], str]
    patch: int
    score: Callable[[str, Account], Agreement]

    def __call__(self, frozen: Params, originals: Originals, samples: Samples) -> jax.Array:
        del frozen
        return on_host(self._scores, originals.patches, originals.grids, samples.tokens)

    def _scores(self, originals: np.ndarray, grids: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        rows = zip(originals, grids, tokens, strict=True)
        return np.array(
            [
                self.score(
                    self.decode(words[words >= 0].tolist()), read_account(true, grid, self.patch)
                ).score
                for true, grid, words in rows
            ]
        )


def read_account(patches: np.ndarray, grid: np.ndarray, patch: int) -> Account:
    """What the judge reads in a picture (N, C) uint8 of rows x columns patches."""
    return seen_in(picture_of(patches, grid, patch))


def picture_of(patches: np.ndarray, grid: np.ndarray, patch: int) -> np.ndarray:
    """The picture (H, W, 3) of patches (N, C). `grid`: its rows and columns of patches."""
    return unpatchify(patches, int(grid[0]), int(grid[1]), patch)


# ---- words alone ------------------------------------------------------------------------------


def caption_lengths(tokens: Int[Array, "B T"]) -> Int[Array, " B"]:
    """Tokens of each caption."""
    return jnp.sum(tokens >= 0, axis=1)


def ended(frozen: Params, originals: Originals, samples: Samples) -> Float32[Array, " B"]:
    """1 for a caption that has words and that the policy ended itself, else 0."""
    del frozen, originals
    written = caption_lengths(samples.tokens) > 0
    return jnp.float32(samples.ended & written)


@dataclasses.dataclass(frozen=True)
class Length:
    """1 for a caption of `least` to `most` tokens, else 0.

    Raises:
      ValueError: no length is allowed.
    """

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 0 <= self.least <= self.most:
            raise ValueError(f"a length from {self.least} to {self.most} tokens is empty")

    def __call__(self, frozen: Params, originals: Originals, samples: Samples) -> jax.Array:
        del frozen, originals
        lengths = caption_lengths(samples.tokens)
        return jnp.float32((lengths >= self.least) & (lengths <= self.most))


# ---- several ----------------------------------------------------------------------------------


def weighted_sum(
    rewards: Mapping[str, Float[Array, " B"]], weights: Mapping[str, float]
) -> Float32[Array, " B"]:
    """Σ_k w_k R_k."""
    return sum(weight * rewards[name].astype(jnp.float32) for name, weight in weights.items())


def named(path: str) -> Reward:
    """A user's own reward by its dotted path, "package.module.function" or "package.module:object".

    Raises:
      ValueError: there is nothing of that name, or it cannot be called.
    """
    try:
        found = pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"reward {path!r} names no function of a module that can be imported: {error}"
        ) from None
    if not callable(found):
        raise ValueError(f"reward {path!r} is {type(found).__name__}, which cannot be called")
    return found
