"""The captioner learns ("g4u", generation for understanding): it describes a picture several times,
frozen weights draw each description, and the drawing's reward is that of the description.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int, Key, UInt8

from unicom_jax.core.batch import MixedBatch
from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Params
from unicom_jax.inference.drawing import Drawing
from unicom_jax.inference.engine import Models
from unicom_jax.rl.rollouts import (
    chance_of,
    draw,
    of_group,
    paint,
    read_prompts,
    words_of,
    write_captions,
)
from unicom_jax.rl.rows import caption_log_probs, picture_rows
from unicom_jax.rl.samples import Originals, Samples
from unicom_jax.rl.scores import Rollout, Scores, Scoring
from unicom_jax.rl.template import Template
from unicom_jax.rl.text_objectives import TextObjective
from unicom_jax.runs.stages import START


@flax.struct.dataclass
class Captions:
    """Rollouts: B = P G captions, those of a picture adjacent.

    Attributes:
      patches, grids: each caption's picture.
      tokens: what was written, including the token that ended it, padded with -1.
      old, reference: log-probabilities of the tokens under the weights that wrote them, and under
        the weights from before the stage.
    """

    patches: UInt8[Array, "B N C"]
    grids: Int[Array, "B 2"]
    tokens: Int[Array, "B T"]
    old: Float32[Array, "B T"]
    reference: Float32[Array, "B T"]
    scores: Scores


@dataclasses.dataclass(frozen=True, eq=False)
class Captioner:
    """How rollouts are made from pictures, and the loss on them.

    Attributes:
      group: captions per picture. `most`: the most tokens of a caption.
      drawing: how captions are drawn. `codec_steps`: flow steps of the pixel decoder.
      draws: whether a reward uses drawings; if not, none are made.
    """

    models: Models
    template: Template
    scoring: Scoring
    objective: TextObjective
    group: int
    most: int
    drawing: Drawing
    codec_steps: int
    draws: bool

    def prepare(self, params: Params, frozen: Params, batch: Any, key: Key[Array, ""]) -> Captions:
        """Rollouts of the present weights for a `PromptBatch`, a function of its arguments."""
        seen = self.seen(frozen, batch.patches, batch.grids)
        rollout, tokens = self._sampled(params, frozen, batch, *seen, key)
        return self.captions(params, frozen, *seen, rollout, tokens)

    def captions(
        self,
        params: Params,
        frozen: Params,
        rows: MixedBatch,
        prepared: Any,
        rollout: Rollout,
        tokens: Int[Array, "B T"],
    ) -> Captions:
        """What the loss needs to know about captions that were written and scored."""
        rows, prepared = of_group((rows, prepared), self.group)
        both = (
            caption_log_probs(self.models.unified, weights, prepared, rows, self.template, tokens)
            for weights in (params, frozen[START])
        )
        pictures = rollout.originals
        return Captions(pictures.patches, pictures.grids, tokens, *both, rollout.scores)

    def rollouts(self, params: Params, frozen: Params, batch: Any, key: Key[Array, ""]) -> Rollout:
        """What `prepare` samples."""
        seen = self.seen(frozen, batch.patches, batch.grids)
        return self._sampled(params, frozen, batch, *seen, key)[0]

    def write(
        self, params: Params, rows: MixedBatch, prepared: Any, key: Key[Array, ""]
    ) -> tuple[Int[Array, "B T"], Samples]:
        """Captions, those of a picture adjacent: their tokens as written, and their words."""
        tokens = write_captions(
            self.models.unified, params, prepared, rows, self.template, self.group, self.most, key
        )
        words, ended = words_of(tokens, self.template)
        return tokens, Samples(tokens=words, ended=ended)

    def originals(self, batch: Any) -> Originals:
        """The pictures of a `PromptBatch`, once for each of their captions."""
        return Originals(
            *of_group((batch.patches, batch.grids, batch.questions, batch.answers), self.group)
        )

    def _sampled(
        self,
        params: Params,
        frozen: Params,
        batch: Any,
        rows: MixedBatch,
        prepared: Any,
        key: Key[Array, ""],
    ) -> tuple[Rollout, Int[Array, "B T"]]:
        """Scored captions with their drawings, and their tokens as they were written."""
        model, start = self.models.unified, frozen[START]
        writing, drawing = jax.random.split(key)
        tokens, samples = self.write(params, rows, prepared, writing)
        originals = self.originals(batch)
        samples = samples.replace(chance=chance_of(key, len(tokens)))
        if self.draws:
            drawn, painted = jax.random.split(drawing)
            grids, words = originals.grids, samples.tokens
            read = read_prompts(model, start, words, self.template, self.drawing.branches)
            latents = draw(model, start, read, self.models.codec.grid(grids), self.drawing, drawn)
            made = paint(self.models, frozen, latents, grids, painted, self.codec_steps)
            samples = samples.replace(latents=latents, patches=made)
        return Rollout(originals, samples, self.scoring(frozen, originals, samples)), tokens

    def loss(
        self, params: Params, frozen: Params, batch: Captions, row_keys: Key[Array, " B"]
    ) -> LossTerms:
        """Terms `policy` and `kl`, and those that are only reported: `clip_share`, `length` and the
        curves of `Scores`."""
        del row_keys
        rows, prepared = self.seen(frozen, batch.patches, batch.grids)
        log_probs = caption_log_probs(
            self.models.unified, params, prepared, rows, self.template, batch.tokens
        )
        written = batch.tokens >= 0
        scores = batch.scores
        terms = self.objective.terms(
            log_probs,
            batch.old,
            batch.reference,
            scores.advantages,
            written * scores.counts[:, None],
        )
        length = jnp.sum(written, dtype=jnp.float32), jnp.float32(len(written))
        return {**terms, "length": length, **scores.terms()}

    def seen(self, frozen: Params, patches: jax.Array, grids: jax.Array) -> tuple[Any, Any]:
        """The rows of pictures, and the image model's `prepare` of them."""
        rows = picture_rows(self.template, patches, grids)
        trees = self.models.family.frozen_of(frozen)
        return rows, jax.lax.stop_gradient(self.models.unified.images.prepare(trees, rows))
