"""The rewards of a rollout's samples, in the form that the loss and the curves need."""

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
    """Scores of B samples, in which the samples of a prompt are adjacent.

    Attributes:
      advantages: each sample's weight in the objective.
      counts: 0 for a sample that a gate keeps out of the loss, else 1.
      total: weighted sum of the rewards. `parts`: each reward, and each gate.
      spread: standard deviation of `total` in the sample's group.
      collapsed: 1 if all samples of the group have the same total, else 0.
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
    """Pictures, what a policy made from them, and its scores; rows as in `Scores`."""

    originals: Originals
    samples: Samples
    scores: Scores


@dataclasses.dataclass(frozen=True)
class Scoring:
    """How samples are scored.

    Attributes:
      rewards, weights: by name; both have the same names.
      gates: rewards of 0 or 1; a sample for which one of them is 0 is kept out of the loss.
      group: samples per prompt.
      spread: as for `advantages.advantages`.
      sum_of: "rewards" adds the rewards and makes the sum an advantage; "advantages" makes each
        reward an advantage and adds these.
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
