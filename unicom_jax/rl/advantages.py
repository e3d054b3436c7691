"""From rewards to advantages: how much better a sample is than the others of its prompt.

Rewards are (P, G): P prompts with a group of G samples each.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32

SPREADS = ("none", "group", "batch")  # what a difference from the group's mean is divided by
LEAST_SPREAD = 1e-6  # relative to the rewards; a smaller spread of a group is rounding


def advantages(
    rewards: Float[Array, "P G"],
    spread: str = "group",
    *,
    epsilon: float = 1e-4,
    clip: float = 0.0,
) -> Float32[Array, "P G"]:
    """Differences from the group's mean, divided by a standard deviation (over n, not n - 1).

    In a group without spread they are exactly 0: rounding would otherwise be scaled up to ±1.

    Args:
      spread: "group" divides by the group's own deviation ("GRPO": Shao et al. 2024,
        arXiv 2402.03300), "batch" by that of all rewards ("Flow-GRPO": Liu et al. 2025,
        arXiv 2505.05470), "none" by nothing ("Dr.GRPO": Liu et al. 2025, arXiv 2503.20783).
      epsilon: added to the deviation.
      clip: bound of the absolute value of the result; 0: none.

    Raises:
      ValueError: an unknown spread, or groups of one sample, whose advantages are all 0.
    """
    if spread not in SPREADS:
        raise ValueError(f"advantage spread {spread!r} is unknown; choose one of {SPREADS}")
    if rewards.shape[1] < 2:
        raise ValueError("a group has one sample, so nothing to compare it with; give at least 2")
    rewards = rewards.astype(jnp.float32)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    if spread == "group":
        centred = centred / (rewards.std(axis=1, keepdims=True) + epsilon)
    if spread == "batch":
        centred = centred / (rewards.std() + epsilon)
    found = jnp.where(collapsed(rewards)[:, None], 0.0, centred)
    return jnp.clip(found, -clip, clip) if clip else found


def combined_advantages(
    rewards: Mapping[str, Float[Array, "P G"]],
    weights: Mapping[str, float],
    spread: str = "group",
    *,
    epsilon: float = 1e-4,
    clip: float = 0.0,
) -> Float32[Array, "P G"]:
    """Σ_k w_k A_k: each reward is made an advantage by itself, and these are added.

    So rewards with a small range count as much as those with a large one ("GDPO", as in BalCapRL,
    arXiv 2605.07394, and MixGRPO, arXiv 2507.21802). `weights` are used as they are; `clip` bounds
    the sum.

    Raises:
      ValueError: rewards and weights have different names; and as for `advantages`.
    """
    if rewards.keys() != weights.keys():
        raise ValueError(f"rewards {sorted(rewards)} and weights {sorted(weights)} differ")
    total = sum(
        weights[name] * advantages(rewards[name], spread, epsilon=epsilon) for name in rewards
    )
    return jnp.clip(total, -clip, clip) if clip else total


def collapsed(rewards: Float[Array, "P G"]) -> Bool[Array, " P"]:
    """Groups whose samples all have the same reward, so that nothing is learned from them."""
    size = jnp.maximum(jnp.abs(rewards).max(axis=1), 1e-6)
    return jnp.ptp(rewards, axis=1) <= LEAST_SPREAD * size
