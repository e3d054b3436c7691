"""A language model that reads text and pictures: the Qwen2.5-VL family (arXiv:2502.13923).

    pictures ─ QwenVision ─ a vector per square of patches ┐
    tokens ─ embedding, picture tokens replaced by those ──┴─ Transformer with M-RoPE ─ logits

How it is used; `inference.reader` does this for answers to whole prompts:

    pictures = model.look(params, patches, grids)                          # once per picture
    hidden, _ = model(params, tokens, lengths, pictures, grids)            # last hidden states
    logits = model.logits(params, hidden)

Another model that conditions on a text takes `hidden` of a call without pictures: then no state has
seen one. Rows are padded at their end. A prompt has one token `picture_token` for every vector of
its pictures, in their order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32

from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.module import Module, Params, Specs
from unicom_jax.core.positions import picture_positions
from unicom_jax.models.qwen_vision import QwenVision
from unicom_jax.models.transformer import TRANSFORMER_SIZES, KVCache, Transformer


@dataclasses.dataclass(frozen=True)
class QwenVL(Module):
    """Image tower and language model.

    Attributes:
      transformer: its `rope_sections` are those of (time, row, column).
      picture_token: the token that stands for a vector of a picture.
      compute_dtype: of tower and transformer; norms, softmax and logits are fp32.
    """

    vision: QwenVision
    transformer: Transformer
    picture_token: int = 151_655
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.vision.out_dim != self.transformer.width:
            raise ValueError(
                f"the tower's vectors have out_dim={self.vision.out_dim}, but the transformer has "
                f"width={self.transformer.width}; make them equal"
            )
        if self.transformer.rope_axes != 3:
            raise ValueError(
                f"rope_sections={self.transformer.rope_sections}; give three, of the rotary "
                "frequencies that turn with time, row and column"
            )
        if not 0 <= self.picture_token < self.transformer.vocab_size:
            raise ValueError(
                f"picture_token={self.picture_token} is not in the vocabulary of "
                f"{self.transformer.vocab_size} tokens"
            )

    def specs(self) -> Specs:
        return {"vision": self.vision.specs(), "transformer": self.transformer.specs()}

    def look(
        self,
        params: Params,
        patches: Float[Array, "B M N C"],
        grids: Int[Array, "B M 2"],
    ) -> Float[Array, "B M n {self.vision.out_dim}"]:
        """The vectors of up to M pictures a row; arguments as in `QwenVision`."""
        rows, most = grids.shape[:2]
        patches = patches.astype(self.compute_dtype).reshape(rows * most, *patches.shape[2:])
        vectors = self.vision(params["vision"], patches, grids.reshape(rows * most, 2))
        return vectors.reshape(rows, most, *vectors.shape[1:])

    def __call__(
        self,
        params: Params,
        tokens: Int[Array, "B S"],
        lengths: Int[Array, " B"],
        pictures: Float[Array, "B M n {self.vision.out_dim}"] | None = None,
        grids: Int[Array, "B M 2"] | None = None,
        cache: KVCache | None = None,
    ) -> tuple[Float[Array, "B S {self.transformer.width}"], KVCache | None]:
        """Last hidden states of whole prompts.

        Args:
          params: weights as declared by `specs`.
          tokens: padded at the end with any token.
          lengths: tokens in use.
          pictures, grids: from `look`, and its argument; None: no pictures.
          cache: None, or an empty cache of at least S slots, which is filled from slot 0.

        Returns:
          The states after the final norm (any values at padding), and the filled cache.

        Raises:
          ValueError: a row has more or fewer picture tokens than vectors (under jit, its states
            become NaN).
        """
        positions, _, found = self._places(tokens, lengths, grids)
        hidden = self.transformer.embed(params["transformer"], tokens, self.compute_dtype)
        if pictures is not None:
            rows, _, most, width = pictures.shape
            index = found[..., :1] * most + found[..., 1:]
            vectors = jnp.take_along_axis(pictures.reshape(rows, -1, width), index, axis=1)
            is_picture = (tokens == self.picture_token)[..., None]
            hidden = jnp.where(is_picture, vectors.astype(hidden.dtype), hidden)
        hidden = self._check(hidden, tokens, lengths, grids if pictures is not None else None)
        return self.transformer(
            params["transformer"], hidden, positions, _causal(tokens.shape), cache
        )

    def next_positions(
        self,
        tokens: Int[Array, "B S"],
        lengths: Int[Array, " B"],
        grids: Int[Array, "B M 2"] | None = None,
    ) -> Int32[Array, " B"]:
        """The rotary index of the text token after each prompt; it is below its length if the
        prompt has pictures."""
        return self._places(tokens, lengths, grids)[1]

    def logits(
        self, params: Params, hidden: Float[Array, "*B {self.transformer.width}"]
    ) -> Float32[Array, "*B {self.transformer.vocab_size}"]:
        """Next-token logits of last hidden states."""
        return self.transformer.logits(params["transformer"], hidden)

    def init_cache(self, rows: int, slots: int) -> KVCache:
        """An empty cache for prompts and answers of together `slots` tokens."""
        return self.transformer.init_cache(rows, slots, jnp.dtype(self.compute_dtype))

    def _places(
        self, tokens: jax.Array, lengths: jax.Array, grids: jax.Array | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """As `core.positions.picture_positions`."""
        if grids is None:
            grids = jnp.zeros((len(tokens), 1, 2), jnp.int32)
        return picture_positions(
            tokens == self.picture_token, _used(tokens, lengths), grids // self.vision.merge
        )

    def _check(
        self, hidden: jax.Array, tokens: jax.Array, lengths: jax.Array, grids: jax.Array | None
    ) -> jax.Array:
        used = _used(tokens, lengths)
        given = jnp.sum((tokens == self.picture_token) & used, axis=1)
        needed = jnp.zeros_like(given)
        if grids is not None:
            needed = jnp.sum(jnp.prod(grids // self.vision.merge, axis=-1), axis=1)
        wrong = given != needed
        if not isinstance(wrong, jax.core.Tracer) and np.any(wrong):
            row = int(np.argmax(wrong))
            raise ValueError(
                f"row {row} has {given[row]} picture tokens (number {self.picture_token}), but "
                f"its pictures have {needed[row]} vectors; write one token for each vector"
            )
        return jnp.where(wrong[:, None, None], jnp.nan, hidden)


def _used(tokens: jax.Array, lengths: jax.Array) -> jax.Array:
    """(B, S) bool: slots that hold a token of the prompt."""
    return jnp.arange(tokens.shape[1]) < lengths[:, None]


def _causal(shape: tuple[int, int]) -> MaskIntervals:
    """Every slot sees those up to itself; padding at the end is seen by padding only."""
    nothing = jnp.zeros(shape, jnp.int32)
    return MaskIntervals(nothing, nothing + jnp.arange(1, shape[1] + 1), nothing, nothing)


def _sized(
    language: str,
    vision: Mapping[str, Any] | None = None,
    transformer: Mapping[str, Any] | None = None,
    **fields: Any,
) -> QwenVL:
    """A published model; the arguments are changes to its two parts and further fields."""
    changes = {"rope_sections": (16, 24, 24), **(transformer or {})}
    language_model = TRANSFORMER_SIZES[language](**changes)
    tower = {"width": 1280, "depth": 32, "heads": 16, "mlp_dim": 3420, **(vision or {})}
    return QwenVL(QwenVision(out_dim=language_model.width, **tower), language_model, **fields)


# The published models, by name; call an entry, with changes if wanted.
QWEN_VL_SIZES: dict[str, Callable[..., QwenVL]] = {
    f"qwen2.5-vl-{size}": partial(_sized, f"qwen2.5-{size}") for size in ("3b", "7b")
}
