"""Which checkpoints of a stage are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from orbax.checkpoint import checkpoint_managers as policies


@dataclasses.dataclass
class NewestOfEvery(policies.PreservationPolicy):
    """Keeps the newest step that `every` divides, to which training may roll back, however often it
    was stopped since."""

    every: int

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        newest = max((c.step for c in checkpoints if c.step % self.every == 0), default=None)
        return [checkpoint.step == newest for checkpoint in checkpoints]


def preservation(
    save_every: int, keep: int, keep_every: int, keep_best: int
) -> policies.PreservationPolicy:
    """Which checkpoints are kept.

    Args:
      save_every: keep the newest step that it divides; 0: none.
      keep: keep this many of the newest steps.
      keep_every: keep each step that it divides; 0: none.
      keep_best: keep this many of the steps with the lowest held-out loss, where it was measured.
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
