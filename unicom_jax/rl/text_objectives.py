"""The objective of a policy that writes text: clipped ratios of its tokens."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from unicom_jax.core.losses import LossTerms
from unicom_jax.rl.policy import DAPO, Clip, k3, surrogate

LENGTHS = ("constant", "own")


@dataclasses.dataclass(frozen=True)
class TextObjective:
    """How the tokens of a batch of texts become a loss.

    Attributes:
      clip: bounds of each token's ratio.
      length: what the sum over a text's tokens is divided by. "constant": the most tokens that a
        text may have, so that all tokens have the same weight ("Dr.GRPO": arXiv 2503.20783);
        "own": the text's own number of tokens, so that those of short texts weigh more ("GRPO":
        arXiv 2402.03300).

    Raises:
      ValueError: an unknown length.
    """

    clip: Clip = DAPO
    length: str = "constant"

    def __post_init__(self) -> None:
        if self.length not in LENGTHS:
            raise ValueError(f"length {self.length!r} is unknown; choose one of {LENGTHS}")

    def terms(
        self,
        log_probs: Float[Array, "B T"],
        old: Float[Array, "B T"],
        reference: Float[Array, "B T"],
        advantages: Float[Array, " B"],
        written: Shaped[Array, "B T"],
    ) -> LossTerms:
        """Terms `policy` and `kl`, and `clip_share` of tokens, which is only reported.

        Args:
          log_probs: log-probabilities of the written tokens under the policy that is trained.
          old: the same under the policy that wrote them. `reference`: under the one to stay near.
          written: 1 at tokens of a text and 0 after its end; 0 everywhere for a text that does not
            count (it still counts in the constant number that sums are divided by).
        """
        written = written.astype(jnp.float32)
        # Values after a text's end are arbitrary. They are replaced first: masking the result alone
        # would leave gradients of 0 · ∞, which is NaN.
        log_probs, old, reference = (
            jnp.where(written > 0, x, 0.0) for x in (log_probs, old, reference)
        )
        gains, clipped = surrogate(log_probs, old, advantages[:, None], self.clip)
        gains, distance = gains * written, k3(log_probs, reference)
        rows, most = written.shape
        if self.length == "own":
            share = 1.0 / jnp.maximum(written.sum(axis=1, keepdims=True), 1.0)
            gains, distance, count = gains * share, distance * share, float(rows)
        else:
            count = float(rows * most)
        return {
            "policy": (-jnp.sum(gains), count),
            "kl": (jnp.sum(distance), count),
            "clip_share": (jnp.sum(clipped * written), jnp.sum(written)),
        }
