"""What all policy-gradient objectives share: clipped ratios, and the distance to a reference."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

from unicom_jax.core.losses import LossTerms


class Clip(NamedTuple):
    """The ratio π / π_old may move between 1 - low and 1 + high; it is pushed no further.

    PPO has low = high (Schulman et al. 2017, arXiv 1707.06347), DAPO .2 and .28, so that unlikely
    tokens can become likelier (Yu et al. 2025, arXiv 2503.14476).
    """

    low: float = 0.2
    high: float = 0.2


DAPO = Clip(0.2, 0.28)


def surrogate(
    log_probs: Float[Array, "*shape"],
    old: Float[Array, "*shape"],
    advantages: Float[Array, "*#shape"],
    clip: Clip,
) -> tuple[Float32[Array, "*shape"], Bool[Array, "*shape"]]:
    """min(ρ A, clip(ρ, 1 - low, 1 + high) A) with ρ = exp(log π - log π_old), and where it clips.

    No gradient reaches `old`; where the ratio is clipped, the gradient is 0.
    """
    ratio = jnp.exp(log_probs - jax.lax.stop_gradient(old))
    inside = jnp.clip(ratio, 1.0 - clip.low, 1.0 + clip.high)
    free, bound = ratio * advantages, inside * advantages
    return jnp.minimum(free, bound), bound < free


def surrogate_terms(
    log_probs: Float[Array, "*shape"],
    old: Float[Array, "*shape"],
    advantages: Float[Array, "*#shape"],
    clip: Clip,
) -> LossTerms:
    """Terms `policy`, minus the mean of `surrogate`, and `clip_share`, which is only reported."""
    gains, clipped = surrogate(log_probs, old, advantages, clip)
    count = float(gains.size)
    return {
        "policy": (-jnp.sum(gains), count),
        "clip_share": (jnp.sum(clipped.astype(jnp.float32)), count),
    }


def k3(
    log_probs: Float[Array, "*shape"], reference: Float[Array, "*shape"]
) -> Float32[Array, "*shape"]:
    """e^d - d - 1 with d = log π_ref - log π, never below 0; its mean over samples of π is
    KL(π‖π_ref) (Schulman 2020, "Approximating KL divergence")."""
    difference = jax.lax.stop_gradient(reference) - log_probs
    return jnp.expm1(difference) - difference
