"""The loss on held-out batches: for a stage's mixture, and for each part of it alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.loading.loader import Loader
from unicom_jax.core.losses import LossTerms, reported
from unicom_jax.core.module import Params
from unicom_jax.parallel.sharding import place_batch
from unicom_jax.training.state import TrainState, split
from unicom_jax.training.step import Trainer

# Number of the first batch -> batches from there on, with this process's rows.
Batches = Callable[[int], Loader]


class HeldOut:
    """Held-out batches, which are read when first needed and then kept on the devices.

    Args:
      prepare: the compiled `Stage.prepare`.
      batches: batches of the stage's mixture, of which `count` are taken.
      parts: batches of single tasks and sources, by name (TASK, source/NAME); `count` of each.
    """

    def __init__(
        self,
        trainer: Trainer,
        prepare: Callable,
        batches: Batches,
        count: int,
        parts: Mapping[str, Batches] | None = None,
    ) -> None:
        self._trainer, self._prepare, self._terms_of = trainer, prepare, trainer.eval_step()
        self._count, self._sources = count, {"": batches, **(parts or {})}
        self._kept: dict[str, list[Any]] = {}

    def evaluate(self, state: TrainState, frozen: Params) -> dict[str, float]:
        """Mean loss terms as `eval/<term>`, those of a part as `eval/<term>/<part>`, and the
        weighted sum of the former as `eval/loss`.

        Both `prepare` and the loss use the weights for inference, and the same noise at every step.
        Terms of no token are left out: a 0 would look like a perfect score. A part has no parts of
        terms.
        """
        self._kept = self._kept or {name: self._take(one) for name, one in self._sources.items()}
        totals = {name: self._totals(state, frozen, some) for name, some in self._kept.items()}
        whole = totals.pop("")
        means = {term: float(value) for term, value in reported(whole).items()}
        total = sum(weight * means[term] for term, weight in self._trainer.stage.weights.items())
        values = {"eval/loss": total}
        values |= {f"eval/{term}": means[term] for term, (_, count) in whole.items() if count > 0}
        for part, terms in totals.items():
            own = {term: pair for term, pair in terms.items() if "/" not in term and pair[1] > 0}
            values |= {f"eval/{term}/{part}": float(x) for term, x in reported(own).items()}
        return values

    def _take(self, batches: Batches) -> list[Any]:
        with closing(batches(0)) as stream:
            return [place_batch(next(stream), self._trainer.mesh) for _ in range(self._count)]

    def _totals(self, state: TrainState, frozen: Params, batches: list[Any]) -> LossTerms:
        params = self._trainer.weights_for_use(state)
        # `step * 0`, not a new 0, keeps the step's sharding, so nothing is compiled again.
        fixed = dataclasses.replace(state, params=params, step=state.step * 0)
        if state.old is not None:
            fixed = dataclasses.replace(fixed, old=split(params, self._trainer.stage.freeze)[0])
        totals: dict[str, Any] = {}
        for batch in batches:
            prepared = self._prepare(fixed, frozen, batch)
            for term, pair in self._terms_of(params, frozen, prepared).items():
                before = totals.get(term, (0.0, 0.0))
                totals[term] = jax.tree.map(np.add, before, jax.device_get(pair))
        return jax.tree.map(jnp.float32, totals)
