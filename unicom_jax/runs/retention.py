"""Which checkpoints of a stage are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from orbax.checkpoint import checkpoint_managers as policies


@dataclasses.dataclass
class NewestOfEvery(policies.PreservationPolicy):
    """Keeps the newest of the steps that `every` divides: the one that training may go back to,
    however often it was stopped since."""

    every: int

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        newest = max((c.step for c in checkpoints if c.step % self.every == 0), default=None)
        return [checkpoint.step == newest for checkpoint in checkpoints]


def preservation(
    save_every: int, keep: int, keep_every: int, keep_best: int
) -> policies.PreservationPolicy:
    """What is kept; 0 keeps none of a kind.

    Args:
      save_every: the newest step that it divides.
      keep: the last so many.
      keep_every: each step that it divides.
      keep_best: so many of those that were saved with a held-out loss, those with the lowest.
    """
    kept = [policies.LatestN(keep)]
    if save_every:
        kept.append(NewestOfEvery(save_every))
    if keep_every:
        kept.append(policies.EveryNSteps(keep_every))
    if keep_best:
        best = policies.BestN(
            get_metric_fn=held_out_loss,
            reverse=True,
            n=keep_best,
            keep_checkpoints_without_metrics=False,
        )
        kept.append(best)
    return policies.AnyPreservationPolicy(kept)


def held_out_loss(metrics: Mapping[str, float]) -> float:
    return metrics["loss"]
