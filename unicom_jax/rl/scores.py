"""What rewards say about the samples of a rollout, as the loss and the curves need it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Params
from unicom_jax.rl.advantages import advantages, collapsed, combined_advantages
from unicom_jax.rl.rewards import Reward, weighted_sum
from unicom_jax.rl.samples import Originals, Samples


@flax.struct.dataclass
class Scores:
    """Of B samples, those of a prompt side by side.

    Attributes:
      advantages: what the objective weighs a sample with.
      counts: 1; 0 for a sample that a gate keeps out of the loss.
      total: weighted sum of the rewards. `parts`: each of them, and each gate.
      spread: standard deviation of `total` in the sample's group.
      collapsed: 1 where all samples of the group have one total.
    """

    advantages: Float32[Array, " B"]
    counts: Float32[Array, " B"]
    total: Float32[Array, " B"]
    parts: Mapping[str, Float32[Array, " B"]]
    spread: Float32[Array, " B"]
    collapsed: Float32[Array, " B"]

    def terms(self) -> LossTerms:
        """The curves, which are only reported: `reward` and `reward/NAME`, `advantage_spread`,
        `collapsed` and `gated`."""
        rows = jnp.float32(self.total.shape[0])
        curves = {
            "reward": self.total,
            **{f"reward/{name}": value for name, value in self.parts.items()},
            "advantage_spread": self.spread,
            "collapsed": self.collapsed,
            "gated": 1.0 - self.counts,
        }
        return {name: (jnp.sum(value), rows) for name, value in curves.items()}


@flax.struct.dataclass
class Rollout:
    """Pictures, what a policy made of them, and what that is worth; rows as of `Scores`."""

    originals: Originals
    samples: Samples
    scores: Scores


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How samples are scored.

    Attributes:
      rewards: by name; `weights`: of the same names.
      gates: rewards of 0 and 1; a sample with 0 of one of them is kept out of the loss.
      group: samples a prompt.
      spread: as for `advantages.advantages`.
      sum_of: "rewards" adds rewards and makes the sum an advantage; "advantages" makes each an
        advantage and adds those.
      clip: bound of advantages; 0: none.
    """

    rewards: Mapping[str, Reward]
    weights: Mapping[str, float]
    gates: Mapping[str, Reward]
    group: int
    spread: str
    sum_of: str
    clip: float = 0.0

    def __call__(self, frozen: Params, originals: Originals, samples: Samples) -> Scores:
        def scored(rewards: Mapping[str, Reward]) -> dict[str, jax.Array]:
            found = {name: of(frozen, originals, samples) for name, of in rewards.items()}
            return {name: value.astype(jnp.float32) for name, value in found.items()}

        found, gates = scored(self.rewards), scored(self.gates)
        total, counts = weighted_sum(found, self.weights), jnp.ones(len(originals.grids))
        for value in gates.values():
            counts = counts * (value > 0)
        if self.sum_of == "advantages":
            groups = {name: self._groups(value) for name, value in found.items()}
            gained = combined_advantages(groups, self.weights, self.spread, clip=self.clip)
        else:
            gained = advantages(self._groups(total), self.spread, clip=self.clip)
        return Scores(
            advantages=gained.reshape(-1),
            counts=counts,
            total=total,
            parts={**found, **gates},
            spread=jnp.repeat(self._groups(total).std(axis=1), self.group),
            collapsed=jnp.repeat(jnp.float32(collapsed(self._groups(total))), self.group),
        )

    def _groups(self, values: Float[Array, " B"]) -> Float[Array, "P G"]:
        return values.reshape(-1, self.group)
