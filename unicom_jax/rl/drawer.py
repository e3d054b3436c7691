"""The drawer learns ("u4g", understanding for generation): frozen weights describe a picture, the
present ones draw the description several times and learn from the rewards of the drawings.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int, Key, UInt8

from unicom_jax.core.flow import (
    integrate_window,
    interpolate,
    sample_time,
    velocity,
)
from unicom_jax.core.flow_steps import SdeStep, log_density
from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Params
from unicom_jax.families.unified import DrawingContext
from unicom_jax.inference.drawing import Drawing
from unicom_jax.inference.engine import Models
from unicom_jax.rl.flow_objectives import FlowObjective, step_kl, window_start
from unicom_jax.rl.rewards import caption_lengths
from unicom_jax.rl.rollouts import (
    begin_drawing,
    chance_of,
    draw,
    noise_of,
    of_group,
    paint,
    read_prompts,
    row_keys,
    velocity_of,
    words_of,
    write_captions,
)
from unicom_jax.rl.rows import picture_rows
from unicom_jax.rl.samples import Originals, Samples
from unicom_jax.rl.scores import Rollout, Scores, Scoring
from unicom_jax.rl.template import Template
from unicom_jax.runs.stages import START


@flax.struct.dataclass
class Drawings:
    """Rollouts: B = P G drawings, those of a description adjacent.

    Attributes:
      words: each drawing's description, padded with -1.
      grids: rows and columns of latents.
      states, times: z at each of K times; with `FlowGrpo`, the K + 1 states of the window.
      reference: velocities at the states under the weights from before the stage.
      target, old: x - ε, and velocities under the weights that drew; None with `FlowGrpo`.
      log_probs: log-probabilities of the window's steps under the weights that drew; only with
        `FlowGrpo`.
    """

    words: Int[Array, "B T"]
    grids: Int[Array, "B 2"]
    states: Float32[Array, "B states n d"]
    times: Float32[Array, "B states"]
    reference: Float32[Array, "B K n d"]
    scores: Scores
    target: Float32[Array, "B K n d"] | None = None
    old: Float32[Array, "B K n d"] | None = None
    log_probs: Float32[Array, "B K"] | None = None


@dataclasses.dataclass(frozen=True)
class Window:
    """SDE steps of `FlowGrpo`; see `flow_objectives.window_start` and `core.flow_steps.SdeStep`."""

    length: int
    stride: int
    held: int
    sde: SdeStep


@dataclasses.dataclass(frozen=True, eq=False)
class Drawer:
    """How rollouts are made from pictures, and the loss on them.

    Attributes:
      group: drawings per description. `most`: the most tokens of a description.
      drawing: how pictures are drawn; without guidance for `FlowGrpo`, which needs the likelihood.
        `codec_steps`: flow steps of the pixel decoder.
      times: K, for objectives that add noise to finished pictures again.
      window: for `FlowGrpo`.
      true_captions: whether captions of the data take the place of the model's own descriptions.
    """

    models: Models
    template: Template
    scoring: Scoring
    objective: FlowObjective
    group: int
    most: int
    drawing: Drawing
    codec_steps: int
    times: int
    window: Window
    true_captions: bool

    def prepare(self, params: Params, frozen: Params, batch: Any, key: Key[Array, ""]) -> Drawings:
        """Rollouts of the present weights for a `PromptBatch`, a function of its arguments."""
        sampling, noising = jax.random.split(key)
        sampled = self._sampled(params, frozen, batch, sampling)
        return self.drawings(params, frozen, *sampled, noising)

    def drawings(
        self,
        params: Params,
        frozen: Params,
        rollout: Rollout,
        context: DrawingContext,
        passed: dict[str, jax.Array] | None,
        key: Key[Array, ""],
    ) -> Drawings:
        """What the loss needs, from the result of `draw_words`."""
        words, grids = rollout.samples.tokens, context.grids[:, 0]
        if passed is None:
            passed = self._noised(params, context, rollout.samples.latents, key)
        start = frozen[START]
        before, asked = self._context(start, words, grids), self._asked(passed["states"])
        reference = self._velocities(start, before, asked, passed["times"][:, : asked.shape[1]])
        return Drawings(words, grids, reference=reference, scores=rollout.scores, **passed)

    def rollouts(self, params: Params, frozen: Params, batch: Any, key: Key[Array, ""]) -> Rollout:
        """What `prepare` samples."""
        return self._sampled(params, frozen, batch, jax.random.split(key)[0])[0]

    def loss(
        self, params: Params, frozen: Params, batch: Drawings, row_keys: Key[Array, " B"]
    ) -> LossTerms:
        """Terms `policy` and `kl`, and those that are only reported: `clip_share`, `length` (of
        descriptions) and the curves of `Scores`."""
        del frozen, row_keys
        context = self._context(params, batch.words, batch.grids)
        asked, scores = self._asked(batch.states), batch.scores
        times = batch.times[:, : asked.shape[1]]
        found = self._velocities(params, context, asked, times)
        gained = scores.advantages
        if self.objective.needs_trajectory:
            terms = self._step_terms(found, batch, gained)
        else:
            floor = self.models.unified.images.prediction.loss_floor
            terms = self.objective.terms(
                found, batch.old, batch.target, times, gained, batch.reference, floor=floor
            )
        lengths = caption_lengths(batch.words).astype(jnp.float32)
        length = jnp.sum(lengths), jnp.float32(len(lengths))
        return {**terms, "length": length, **scores.terms()}

    # ---- parts ------------------------------------------------------------------------------

    def _sampled(
        self, params: Params, frozen: Params, batch: Any, key: Key[Array, ""]
    ) -> tuple[Rollout, DrawingContext, dict[str, jax.Array] | None]:
        writing, drawing, painting = jax.random.split(key, 3)
        words = self._describe(frozen, batch, writing)
        prompts = words, batch.patches, batch.grids, batch.number[0]
        return self.draw_words(params, frozen, *prompts, drawing, painting)

    def draw_words(
        self,
        params: Params,
        frozen: Params,
        words: Int[Array, "P T"],
        patches: UInt8[Array, "P N C"],
        grids: Int[Array, "P 2"],
        number: Int[Array, ""],
        drawing: Key[Array, ""],
        painting: Key[Array, ""],
    ) -> tuple[Rollout, DrawingContext, dict[str, jax.Array] | None]:
        """`group` drawings of each of P descriptions; the context in which they were drawn; and the
        states of the window, or None without `FlowGrpo`. `number`: the batch's."""
        words, patches, grids = of_group((words, patches, grids), self.group)
        model, latent_grids = self.models.unified, self.models.codec.grid(grids)
        read = read_prompts(model, params, words, self.template, self.drawing.branches)
        context = begin_drawing(model, params, read, latent_grids)
        if self.objective.needs_trajectory:
            latents, passed = self._draw_window(params, context, number, drawing)
        else:
            latents, passed = draw(model, params, read, latent_grids, self.drawing, drawing), None
        drawn = paint(self.models, frozen, latents, grids, painting, self.codec_steps)
        chance = chance_of(drawing, len(words))
        samples = Samples(tokens=words, latents=latents, patches=drawn, chance=chance)
        originals = Originals(patches, grids)
        scores = self.scoring(frozen, originals, samples)
        return Rollout(originals, samples, scores), context, passed

    def _describe(self, frozen: Params, batch: Any, key: Key[Array, ""]) -> Int[Array, "P T"]:
        if self.true_captions:
            return batch.captions
        rows = picture_rows(self.template, batch.patches, batch.grids)
        model = self.models.unified
        prepared = model.images.prepare(self.models.family.frozen_of(frozen), rows)
        tokens = write_captions(
            model, frozen[START], prepared, rows, self.template, 1, self.most, key
        )
        return words_of(tokens, self.template)[0]

    def _context(
        self, params: Params, words: Int[Array, "B T"], grids: Int[Array, "B 2"]
    ) -> DrawingContext:
        read = read_prompts(self.models.unified, params, words, self.template)
        return begin_drawing(self.models.unified, params, read, grids)

    @property
    def _shape(self) -> tuple[int, int]:
        return self.models.unified.images.shape_of(len(self.template.positions))

    def _draw_window(
        self, params: Params, context: DrawingContext, number: Int[Array, ""], key: Key[Array, ""]
    ) -> tuple[Float[Array, "B n d"], dict[str, jax.Array]]:
        """Latents, and the states, times and log-probabilities of the window of SDE steps."""
        start_key, step_key = jax.random.split(key)
        window, rows = self.window, context.grids.shape[0]
        first = window_start(
            number, self.drawing.steps, window.length, stride=window.stride, held=window.held
        )
        latents, passed = integrate_window(
            velocity_of(self.models.unified, params, context),
            noise_of(start_key, rows, self._shape),
            self.drawing.steps,
            window.sde,
            first,
            window.length,
            self.drawing.shift,
            key=row_keys(step_key, rows),
        )
        return latents, {
            "states": jnp.swapaxes(passed.states, 0, 1),
            "times": jnp.broadcast_to(passed.times, (rows, len(passed.times))),
            "log_probs": passed.log_probs.T,
        }

    def _noised(
        self, params: Params, context: DrawingContext, latents: jax.Array, key: Key[Array, ""]
    ) -> dict[str, jax.Array]:
        """Finished pictures with noise, at times that are sampled as in training."""
        flow_time, rows = self.models.unified.images.flow_time, len(latents)
        shift = flow_time.shift_of(*self._shape)
        time_key, noise_key = jax.random.split(key)
        times = jax.vmap(lambda one: sample_time(one, (self.times,), flow_time.kind, shift))(
            row_keys(time_key, rows)
        )
        noise = noise_of(noise_key, rows, (self.times, *self._shape))
        clean = jnp.broadcast_to(latents[:, None], noise.shape)
        states = interpolate(clean, noise, times)
        return {
            "states": states,
            "times": times,
            "target": velocity(clean, noise),
            "old": self._velocities(params, context, states, times),
        }

    def _asked(self, states: jax.Array) -> jax.Array:
        """The states whose velocity is needed: in a window, all but the last."""
        return states[:, :-1] if self.objective.needs_trajectory else states

    def _velocities(
        self,
        params: Params,
        context: DrawingContext,
        states: Float[Array, "B K n d"],
        times: Float[Array, "B K"],
    ) -> Float32[Array, "B K n d"]:
        """Velocities, one time after the other and recomputed in the backward pass, so that memory
        holds those of one time only."""

        @jax.checkpoint
        def one(params: Params, context: DrawingContext, z: jax.Array, time: jax.Array):
            return velocity_of(self.models.unified, params, context)(z, time)

        pairs = jnp.swapaxes(states, 0, 1), jnp.swapaxes(times, 0, 1)
        found = jax.lax.map(lambda pair: one(params, context, *pair), pairs)
        return jnp.swapaxes(found, 0, 1)

    def _step_terms(
        self, found: Float[Array, "B K n d"], batch: Drawings, gained: Float[Array, " B"]
    ) -> LossTerms:
        """Loss terms of the steps of a window, whose times are the same in all rows."""
        sde, logs, kls = self.window.sde, [], []
        for k in range(found.shape[1]):
            z, after = batch.states[:, k], batch.states[:, k + 1]
            t0, t1 = batch.times[0, k], batch.times[0, k + 1]
            mean, deviation = sde.moments(lambda z, t, k=k: found[:, k], z, t0, t1)
            before, _ = sde.moments(lambda z, t, k=k: batch.reference[:, k], z, t0, t1)
            logs.append(log_density(after, mean, deviation))
            kls.append(step_kl(mean, before, deviation))
        return self.objective.terms(
            jnp.stack(logs, axis=1), batch.log_probs, gained, jnp.stack(kls, axis=1)
        )
