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
      clip: of the ratio of each token.
      length: by what the sum over a text's tokens is divided. "constant": by the most tokens that a
        text may have, the same for all, so that every token weighs alike ("Dr.GRPO":
        arXiv 2503.20783); "own": by the text's own, so that tokens of short texts weigh more
        ("GRPO": arXiv 2402.03300).
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
          log_probs: of the written tokens, with the gradient of the policy.
          old: of the policy that wrote them. `reference`: of the one to stay near.
          written: 1 at tokens of a text, 0 behind its end, or everywhere for a text that is not to
            count (it still counts in the constant number that sums are divided by).
        """
        written = written.astype(jnp.float32)
        # What stands behind a text's end may be anything: replaced before it is computed with, as
        # else its gradient, 0 · ∞, would be NaN.
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
