"""Objectives of a policy that draws by a flow, in this code's convention: t = 1 is data.

Flow-GRPO needs the states of an SDE and their log-probabilities. DiffusionNFT and AWM need only the
finished picture, drawn by any sampler: they add noise to it again, at other times, and use its
advantage as the weight of a flow-matching loss.

    B pictures, K steps (Flow-GRPO) or K times (others) of each, n tokens of d channels
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.losses import LossTerms
from unicom_jax.rl.policy import Clip, surrogate_terms


@dataclasses.dataclass(frozen=True)
class FlowGrpo:
    """Clipped ratios of SDE steps ("Flow-GRPO": Liu et al. 2025, arXiv 2505.05470).

    The log-probability of a step is a mean over its dimensions (`core.flow_steps.SdeStep`), so the
    ratio stays near 1, and its clip range is narrow accordingly. With SDE steps only in a window of
    the integration this is MixGRPO (arXiv 2507.21802), see `window_start`.
    """

    clip: Clip = Clip(1e-4, 1e-4)

    needs_trajectory: ClassVar[bool] = True

    def terms(
        self,
        log_probs: Float[Array, "B K"],
        old: Float[Array, "B K"],
        advantages: Float[Array, " B"],
        kl: Float[Array, "B K"],
    ) -> LossTerms:
        """Terms `policy`, `kl` (from `step_kl`) and `clip_share`, which is only reported."""
        terms = surrogate_terms(log_probs, old, advantages[:, None], self.clip)
        return {**terms, "kl": (jnp.sum(kl), float(kl.size))}


def step_kl(
    mean: Float[Array, " B *shape"],
    reference: Float[Array, " B *shape"],
    deviation: Float[Array, ""],
) -> Float32[Array, " B"]:
    """KL divergence per dimension of two Gaussian steps with the same deviation,
    (Δmean)² / (2 deviation²).

    Flow-GRPO's released code leaves the step's length out of the deviation: its KL is this one
    times t1 - t0, so short steps have less weight.
    """
    squares = jnp.square((mean - reference) / deviation).astype(jnp.float32)
    return 0.5 * squares.mean(axis=tuple(range(1, squares.ndim)))


def window_start(
    update: Int[Array, ""] | int, steps: int, length: int, *, stride: int = 1, held: int = 25
) -> Int[Array, ""]:
    """The first of `length` SDE steps among the `steps` of an integration, for the given update.

    The window moves by `stride` after every `held` updates; after its last place it begins again at
    the first step (MixGRPO, "progressive"). It never contains the last step, because no later step
    could remove the noise that an SDE step adds there.

    Raises:
      ValueError: the window does not fit, or `stride` or `held` is below 1.
    """
    if not 1 <= length < steps:
        raise ValueError(
            f"a window of {length} SDE steps does not fit before the last of {steps} steps"
        )
    if stride < 1 or held < 1:
        raise ValueError(f"stride={stride} and held={held} of a window; give at least 1")
    places = (steps - 1 - length) // stride + 1
    return jnp.asarray(update, jnp.int32) // held % places * stride


@dataclasses.dataclass(frozen=True)
class Nft:
    """DiffusionNFT (Zheng et al. 2025, arXiv 2509.16117): pulls towards good pictures and pushes
    away from bad ones, without a likelihood.

        v⁺ = β v + (1 - β) v_old        v⁻ = (1 + β) v_old - β v        r = clip(A / 2c + ½, 0, 1)
        loss = c/β [r ‖x̂⁺ - x‖² / w⁺ + (1 - r) ‖x̂⁻ - x‖² / w⁻]         x̂± = z_t + (1 - t) v±

    with c = `most`, ‖·‖² means over dimensions and w± = mean |x̂± - x|, which gets no gradient. At
    v = v_old the gradient is that of A (1-t)²/w ‖v - (x - ε)‖² for any β.

    Attributes:
      beta: weight of v against v_old in v±.
      most: advantages are clipped to ±`most`.
      adaptive: divide by w. If False, the loss compares velocities instead of pictures,
        r ‖v⁺ - u‖² + (1 - r) ‖v⁻ - u‖² with u = x - ε; its optimum is
        v_old + (2r - 1) (u - v_old) / β.

    Raises:
      ValueError: `beta` or `most` is not above 0.
    """

    beta: float = 1.0
    most: float = 5.0
    adaptive: bool = True

    needs_trajectory: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.beta > 0 or not self.most > 0:
            raise ValueError(f"beta={self.beta}, most={self.most}: give numbers above 0")

    def share(self, advantages: Float[Array, "*B"]) -> Float32[Array, "*B"]:
        """r, from 0 (bad) to 1 (good)."""
        return jnp.clip(advantages / (2.0 * self.most) + 0.5, 0.0, 1.0)

    def losses(
        self,
        velocity: Float[Array, "B K *shape"],
        old: Float[Array, "B K *shape"],
        target: Float[Array, "B K *shape"],
        time: Float[Array, "B K"],
        share: Float[Array, " B"],
    ) -> Float32[Array, "B K"]:
        """The loss of each picture at each time. `target`: u = x - ε."""
        velocity, old, target = (x.astype(jnp.float32) for x in (velocity, old, target))
        old = jax.lax.stop_gradient(old)
        positive = old + self.beta * (velocity - old)
        negative = old - self.beta * (velocity - old)
        good, bad = (self._distance(x - target, time) for x in (positive, negative))
        return share[:, None] * good + (1.0 - share[:, None]) * bad

    def _distance(self, error: jax.Array, time: jax.Array) -> jax.Array:
        """Squared distance of v± from u, weighted; `error`: v± - u = (x̂± - x) / (1 - t)."""
        axes = tuple(range(2, error.ndim))
        squares = jnp.square(error).mean(axes)
        if not self.adaptive:
            return squares
        left = 1.0 - time
        weight = jnp.maximum(left * jnp.abs(error).mean(axes), 1e-5)
        return self.most / self.beta * jnp.square(left) * squares / jax.lax.stop_gradient(weight)

    def terms(
        self,
        velocity: Float[Array, "B K *shape"],
        old: Float[Array, "B K *shape"],
        target: Float[Array, "B K *shape"],
        time: Float[Array, "B K"],
        advantages: Float[Array, " B"],
        reference: Float[Array, "B K *shape"],
        *,
        floor: float = 0.0,
    ) -> LossTerms:
        """Terms `policy`, `kl` and `clip_share`, the share of pictures whose advantage is beyond
        ±`most`, which is only reported. For `kl` and `floor`, see `velocity_distance`."""
        losses = self.losses(velocity, old, target, time, self.share(advantages))
        beyond = (jnp.abs(advantages) > self.most).astype(jnp.float32)
        return {
            "policy": (jnp.sum(losses), float(losses.size)),
            "kl": velocity_distance(velocity, reference, time, floor),
            "clip_share": (jnp.sum(beyond), float(beyond.size)),
        }


@dataclasses.dataclass(frozen=True)
class Awm:
    """Advantage-weighted matching (Xue et al. 2025, arXiv 2509.25050): a policy gradient with the
    flow-matching loss l = ‖v - (x - ε)‖² in place of a negative log-likelihood.

        log π = -(1 - t) / p ((l + 1e-10)^p - 1e-10^p)

    Attributes:
      power: p; 1 takes the loss itself, smaller values give large losses less weight.
      clip: bounds of exp(log π - log π_old).
      most: advantages are clipped to ±`most` and divided by it.

    Raises:
      ValueError: `power` or `most` is not above 0.
    """

    power: float = 0.25
    clip: Clip = Clip(1.0, 1.0)
    most: float = 5.0

    needs_trajectory: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.power > 0 or not self.most > 0:
            raise ValueError(f"power={self.power}, most={self.most}: give numbers above 0")

    def log_probs(
        self,
        velocity: Float[Array, "B K *shape"],
        target: Float[Array, "B K *shape"],
        time: Float[Array, "B K"],
    ) -> Float32[Array, "B K"]:
        """log π of each picture at each time. `target`: x - ε."""
        squares = jnp.square((velocity - target).astype(jnp.float32))
        loss = squares.mean(tuple(range(2, squares.ndim)))
        raised = (loss + 1e-10) ** self.power - 1e-10**self.power
        return -(1.0 - time) / self.power * raised

    def terms(
        self,
        velocity: Float[Array, "B K *shape"],
        old: Float[Array, "B K *shape"],
        target: Float[Array, "B K *shape"],
        time: Float[Array, "B K"],
        advantages: Float[Array, " B"],
        reference: Float[Array, "B K *shape"],
        *,
        floor: float = 0.0,
    ) -> LossTerms:
        """As for `Nft`, but `clip_share` is the share of clipped ratios."""
        weights = jnp.clip(advantages, -self.most, self.most) / self.most
        logs = (self.log_probs(v, target, time) for v in (velocity, old))
        terms = surrogate_terms(*logs, weights[:, None], self.clip)
        return {**terms, "kl": velocity_distance(velocity, reference, time, floor)}


def velocity_distance(
    velocity: Float[Array, "B K *shape"],
    reference: Float[Array, "B K *shape"],
    time: Float[Array, "B K"],
    floor: float = 0.0,
) -> tuple[Float32[Array, ""], float]:
    """The term mean ‖v - v_ref‖², in place of a KL divergence, which needs a likelihood.

    A network that predicts data has v = (x̂ - z) / (1 - t), so differences of velocities have no
    bound near t = 1, and a few draws there would dominate the term. With a `floor`, velocities are
    compared as in the flow loss of such a network, by (x̂ - x̂_ref) / max(1 - t, floor).
    """
    difference = velocity - jax.lax.stop_gradient(reference)
    squares = jnp.square(difference.astype(jnp.float32))
    if floor:
        left = 1.0 - time
        share = jnp.square(left / jnp.maximum(left, floor))
        squares *= share.reshape(share.shape + (1,) * (squares.ndim - share.ndim))
    return jnp.sum(squares), float(squares.size)


FlowObjective = FlowGrpo | Nft | Awm
