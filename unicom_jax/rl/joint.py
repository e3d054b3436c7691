"""Captioner and drawer learn from the same drawings ("jointly").

The present weights write J captions of a picture and draw each of them K times. A drawing is
compared with the other drawings of its caption. A caption is compared with the other captions of
its picture, by the mean reward of its drawings ("Dual-GRPO" of Think-Then-Generate).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
from jaxtyping import Array, Key

from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Params
from unicom_jax.rl.captioner import Captioner, Captions
from unicom_jax.rl.drawer import Drawer, Drawings
from unicom_jax.rl.scores import Rollout

DRAWN = "drawings"  # a caption's reward: the mean of its drawings' rewards
OF_DRAWINGS = "drawing/"  # prefix of the names of the drawer's terms
SHARED = ("length", "gated")  # terms of the drawer that are left out: they say nothing new


@flax.struct.dataclass
class Both:
    """Rollouts: P J captions and P J K drawings, those of a caption adjacent."""

    captions: Captions
    drawings: Drawings


@dataclasses.dataclass(frozen=True, eq=False)
class Joint:
    """How rollouts are made from pictures, and the loss on them.

    Attributes:
      captioner: with J as its group. It draws nothing itself; its rewards use words alone.
      drawer: with K as its group.
    """

    captioner: Captioner
    drawer: Drawer

    def prepare(self, params: Params, frozen: Params, batch: Any, key: Key[Array, ""]) -> Both:
        """Rollouts of the present weights for a `PromptBatch`, a function of its arguments."""
        sampling, noising = jax.random.split(key)
        seen, tokens, written, drawn = self._sampled(params, frozen, batch, sampling)
        return Both(
            self.captioner.captions(params, frozen, *seen, written, tokens),
            self.drawer.drawings(params, frozen, *drawn, noising),
        )

    def rollouts(self, params: Params, frozen: Params, batch: Any, key: Key[Array, ""]) -> Rollout:
        """The captions that `prepare` samples, each with its first drawing."""
        _, _, written, drawn = self._sampled(params, frozen, batch, jax.random.split(key)[0])
        first = jax.tree.map(lambda x: x[:: self.drawer.group], drawn[0].samples)
        samples = written.samples.replace(latents=first.latents, patches=first.patches)
        return written.replace(samples=samples)

    def loss(
        self, params: Params, frozen: Params, batch: Both, row_keys: Key[Array, " B"]
    ) -> LossTerms:
        """The captioner's terms, and the drawer's with the prefix `OF_DRAWINGS`."""
        terms = self.captioner.loss(params, frozen, batch.captions, row_keys)
        drawn = self.drawer.loss(params, frozen, batch.drawings, row_keys)
        own = {f"{OF_DRAWINGS}{name}": pair for name, pair in drawn.items() if name not in SHARED}
        return terms | own

    def _sampled(self, params: Params, frozen: Params, batch: Any, key: Key[Array, ""]) -> Any:
        """Rows and prepared pictures, the captions' tokens and rollout, and the result of
        `Drawer.draw_words` for them."""
        writing, drawing, painting = jax.random.split(key, 3)
        captioner, drawer = self.captioner, self.drawer
        seen = captioner.seen(frozen, batch.patches, batch.grids)
        tokens, samples = captioner.write(params, *seen, writing)
        originals = captioner.originals(batch)
        pictures = originals.patches, originals.grids, batch.number[0]
        drawn = drawer.draw_words(params, frozen, samples.tokens, *pictures, drawing, painting)
        worth = drawn[0].scores.total.reshape(-1, drawer.group).mean(axis=1)
        scoring = dataclasses.replace(
            captioner.scoring,
            rewards={**captioner.scoring.rewards, DRAWN: lambda *_: worth},
            weights={**captioner.scoring.weights, DRAWN: 1.0},
        )
        scores = scoring(frozen, originals, samples)
        return seen, tokens, Rollout(originals, samples, scores), drawn
