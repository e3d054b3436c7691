"""SigLIP's text tower: learned positions, bidirectional blocks, last slot's state, linear head."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float, Int

from unicom_jax.core.activations import PICTURES
from unicom_jax.core.attention import padding_mask
from unicom_jax.core.layers import Embedding, Linear
from unicom_jax.core.module import Params, ParamSpec, Specs, normal
from unicom_jax.models.encoder_stack import Tower


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoder(Tower):
    """SigLIP 2's text tower. Compute runs in `dtype`.

    Attributes, besides those of `Tower`:
      vocab_size: size of the token table (256,000 in SigLIP 2).
      max_length: number of learned positions (64 in SigLIP 2).
      out_dim: width of the text's embedding, equal to the image tower's; None: `width`.
      dtype: dtype of the activations, since token ids have none to follow.
    """

    vocab_size: int = 256_000
    max_length: int = 64
    out_dim: int | None = None
    dtype: str = "float32"

    @property
    def embedding(self) -> Embedding:
        return Embedding(self.vocab_size, self.width)

    @property
    def head(self) -> Linear:
        return Linear(self.width, self.out_dim or self.width, axes=("embed", None))

    def specs(self) -> Specs:
        return {
            "embedding": self.embedding.specs(),
            "positions": ParamSpec((self.max_length, self.width), (None, "embed"), normal(0.02)),
            "blocks": self.stack.specs(),
            "norm": self.norm.specs(),
            "head": self.head.specs(),
        }

    def __call__(
        self, params: Params, tokens: Int[Array, "B S"], lengths: Int[Array, " B"] | None = None
    ) -> Float[Array, "B out_dim"]:
        """One vector per text, not normalised.

        SigLIP pads every text to one length, lets all slots see the padding, and reads the *last
        slot*, padding or not: the same text must always be padded to the same S. `lengths` hides
        the padding from attention, as `attention_mask` does in transformers; the last slot is still
        the one that is read.

        Args:
          params: weights as declared by `specs`.
          tokens: token ids, at most `max_length` per text.
          lengths: number of real tokens at the start of each row.

        Raises:
          ValueError: S exceeds `max_length`.
        """
        slots = tokens.shape[1]
        if slots > self.max_length:
            raise ValueError(
                f"texts of {slots} tokens exceed max_length {self.max_length}; truncate them"
            )
        x = self.embedding(params["embedding"], tokens, axes=(PICTURES,))
        x = x + params["positions"][:slots]
        mask = None if lengths is None else padding_mask(lengths, slots)
        x = self.stack(params["blocks"], x.astype(self.dtype), mask)
        return self.head(params["head"], self.norm(params["norm"], x[:, -1]))
