"""`ImageModel`: how pictures of a batch become vectors of sequence slots, and are predicted there.

    prepare    frozen encoders and codecs; no gradient                    once per picture
    noise      pictures at a flow time: z_t, t and the target             once per draw
    looked_at  vectors of the pictures that are read                      (B, M, slots, W)
    drawn      vectors of the pictures that are drawn, and `aux`          (B, draws, slots, W)
    condition  what the velocity needs from the hidden states of those slots
    velocity   the prediction, in the image's own shape

A picture keeps its own shape (tokens of `channels` numbers, as its codec makes them) throughout.
Only `families/unified.py` deals with sequence slots: it places the vectors of `looked_at` and
`drawn` and gathers the hidden states. So a slot need not be one latent, an encoder may be trained
inside the loss, time need not be added to anything, and a head may look at a whole image. In
training, methods after `noise` get every picture and every draw as a row of its own (M or draws =
1), so that no picture can look at another one in its row (`looked_at_and_drawn`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int, Key, Shaped

from unicom_jax.core.batch import MixedBatch
from unicom_jax.core.flow import (
    data_to_velocity,
    floored_velocities,
    flow_terms,
    interpolate,
    latent_shift,
    sample_time,
    velocity,
)
from unicom_jax.core.grids import token_mask
from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Module, Params
from unicom_jax.families.slots import each_alone, side_by_side, take


@dataclasses.dataclass(frozen=True)
class FlowTime:
    """How training draws the flow time: the choices of `core.flow.sample_time`.

    `shift` 0 takes s = sqrt(N d / 4096) of each picture's own N tokens of d channels.
    """

    kind: str = "uniform"
    shift: float = 1.0

    def shift_of(self, tokens: Any, channels: int) -> Any:
        """The shift for pictures of `tokens` tokens: a number, or an array like `tokens`."""
        return self.shift or latent_shift(tokens, channels)


PREDICTIONS = ("velocity", "data")


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a flow head predicts.

    Attributes:
      kind: "velocity", as in the papers, or "data": the clean latent x̂, from which follows
        v = (x̂ - z_t) / (1 - t) ("JiT": Li & He 2025).
      time_floor: lower bound of 1 - t in the loss of "data", which bounds its weight near t = 1.
    """

    kind: str = "velocity"
    time_floor: float = 0.05

    def __post_init__(self) -> None:
        if self.kind not in PREDICTIONS:
            raise ValueError(
                f"unified.prediction={self.kind!r} is not one of {', '.join(PREDICTIONS)}"
            )

    @property
    def loss_floor(self) -> float:
        """Lower bound of 1 - t where errors of velocities are weighed; 0: they need none."""
        return 0.0 if self.kind == "velocity" else self.time_floor

    def velocity(self, given: Float32[Array, "B draws n d"], noised: Noised) -> jax.Array:
        """dz/dt from a head's output, for the integrator."""
        if self.kind == "velocity":
            return given
        # A negligible floor: a step to t = 1 then ends at x̂, with no noise left over.
        return data_to_velocity(given, noised.noisy, noised.time, floor=1e-6)

    def and_target(
        self, given: Float32[Array, "B draws n d"], noised: Noised
    ) -> tuple[jax.Array, jax.Array]:
        """The velocity from a head's output and the true one, as the loss compares them."""
        if self.kind == "velocity":
            return given, velocity(noised.clean, noised.noise)
        return floored_velocities(given, noised.clean, noised.noisy, noised.time, self.time_floor)


@flax.struct.dataclass
class Noised:
    """Draws at their times, in the image's own shape.

    Attributes:
      noisy: z_t.
      time: flow time t of each draw.
      grids: rows and columns of the n tokens; (0, 0) where there is no draw.
      clean, noise: z_1 and ε; None during sampling.
      of: which part of a mixture each draw belongs to (`core.parts.membership`); None: unknown.
      scored: whether each draw counts in the loss; None: all do.
    """

    noisy: Float[Array, "B draws n d"]
    time: Float[Array, "B draws"]
    grids: Int[Array, "B draws 2"]
    clean: Float[Array, "B draws n d"] | None = None
    noise: Float[Array, "B draws n d"] | None = None
    of: Bool[Array, "B draws 1 P"] | None = None
    scored: Bool[Array, "B draws"] | None = None

    @property
    def real(self) -> Bool[Array, "B draws n"]:
        """True at tokens of a draw that counts, False at padding."""
        tokens = token_mask(self.grids, self.noisy.shape[2])
        return tokens if self.scored is None else tokens & self.scored[..., None]

    def without_picture(self, chosen: Bool[Array, "B draws"], *, scored: bool) -> Noised:
        """The same, but the `chosen` draws are noise alone, at t = 0."""
        return self.replace(
            noisy=jnp.where(chosen[..., None, None], self.noise, self.noisy),
            time=jnp.where(chosen, 0.0, self.time),
            scored=None if scored else ~chosen,
        )


@flax.struct.dataclass
class Context:
    """Last hidden states of all slots before the place of each draw; later entries are padding."""

    states: Float[Array, "B draws T W"]
    lengths: Int[Array, "B draws"]


class ImageModel(Module):
    """The image side of a family. Its `specs` join the transformer's in one tree of weights.

    The defaults are those of a flow over latents with a head that gives the velocity.

    Attributes:
      flow_time: how `noise` draws times; sampling shifts its steps alike.
      reads_noise: whether the result of `drawn` depends on z_t or t. If not, `drawn` and the
        transformer run once per picture, and only `velocity` at each step of sampling.
      reads_context: whether `condition` takes the hidden states of all that precedes the picture, a
        `Context`, and not those of its own slots. Then the transformer does not run for a picture
        that is sampled.
      slot_patches: patches along each side of a slot of a picture that is read; used by M-RoPE.
      flow_over: pictures over which the loss is averaged: "drawn"; or "all", which adds dummies and
        the pictures that are read, as if drawn at t = 1 (`ended`), where the target velocity is 0.
      dummies: whether batches have draws of `SequenceConfig.dummies`, which are at t = 0.
      time_grids: the kinds of `core.flow.time_grid` that sampling may use.
      takes_features: whether `prepare` accepts batches with features of the frozen encoder instead
        of pictures.
      prediction: what the head predicts.
    """

    flow_time: FlowTime = FlowTime()
    prediction = Prediction()
    reads_noise = True
    reads_context = False
    slot_patches = 1
    flow_over = "drawn"
    dummies = False
    time_grids = ("even",)
    takes_features = False

    def frozen(self, *, draws: bool) -> tuple[str, ...]:
        """Patterns of weights that a stage does not train. `draws`: whether it has a flow loss."""
        del draws
        return ()

    def shape_of(self, slots: int) -> tuple[int, int]:
        """(n, d): the own shape of a picture that takes `slots` slots."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing")

    def prepare(self, frozen: Params, batch: MixedBatch) -> Any:
        """Outputs of frozen models for the batch's pictures, as a tree of arrays (B, M, ...)."""
        raise NotImplementedError(f"{type(self).__name__} prepares nothing")

    def noise(
        self, prepared: Any, draws: Int[Array, "B draws"], row_keys: Key[Array, " B"]
    ) -> Noised:
        """Noises each draw at a time of its own; `draws` are pictures of the row, -1: none."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing")

    def ended(self, prepared: Any) -> Noised:
        """Every picture at t = 1, without noise; `drawn` then returns what `looked_at` does."""
        raise NotImplementedError(f"{type(self).__name__} has no loss of pictures that are read")

    def looked_at(
        self, params: Params, prepared: Any
    ) -> tuple[Float[Array, "B M p W"], Float[Array, "B M q W"]]:
        """Vectors of UNDERSTAND slots and of CLEAN slots of every picture, in raster order."""
        raise NotImplementedError(f"{type(self).__name__} reads nothing")

    def drawn(self, params: Params, noised: Noised) -> tuple[Float[Array, "B draws s W"], Any]:
        """Vectors of the NOISY slots of every draw, and `aux`: what else `velocity` needs."""
        raise NotImplementedError(f"{type(self).__name__} draws nothing")

    def looked_at_and_drawn(
        self,
        params: Params,
        prepared: Any,
        noised: Noised,
        read: Bool[Array, "B M"],
        views: int,
    ) -> tuple[tuple[Float[Array, "B M _p W"], ...], Float[Array, "B draws s W"], Any]:
        """`looked_at` and `drawn` of whole rows: the vectors of both, and `aux` of the draws.

        Each picture and each draw is computed as a row of its own. A family with costly slots may
        skip pictures that are not `read` and absent draws.

        Args:
          read: pictures whose vectors are used in some slot; the others' vectors may be anything.
          views: the most pictures read and draws, together, in a row; 0: no limit.
        """
        del read, views
        rows = len(noised.time)
        drawn, aux = self.drawn(params, each_alone(noised))
        looked = self.looked_at(params, each_alone(prepared))
        return tuple(side_by_side(x, rows) for x in looked), side_by_side(drawn, rows), aux

    def condition(
        self,
        params: Params,
        hidden: Float[Array, "B draws s W"] | Context,
        grids: Int[Array, "B draws 2"],
    ) -> Any:
        """What `velocity` needs from hidden states; computed once unless `reads_noise`."""
        del params, grids
        return hidden

    def velocity(
        self, params: Params, condition: Any, noised: Noised, aux: Any
    ) -> Float32[Array, "B draws n d"]:
        """dz/dt at z_t, for the integrator."""
        raise NotImplementedError(f"{type(self).__name__} predicts nothing")

    def loss_terms(self, params: Params, condition: Any, noised: Noised, aux: Any) -> LossTerms:
        """Terms of the draws; `flow` is the squared error of the velocity per channel, with its
        parts by time (`core.flow.flow_terms`)."""
        predicted = self.velocity(params, condition, noised, aux)
        target = velocity(noised.clean, noised.noise)
        return flow_terms(predicted, target, noised.real, noised.time[..., None], noised.of)


def pictures_of(
    images: Shaped[Array, "B M ..."], draws: Int[Array, "B draws"]
) -> Shaped[Array, "B draws ..."]:
    """The picture of each draw; for an absent draw, the first picture."""
    return take(images, jnp.maximum(draws, 0))


def noise_draws(
    latents: Float[Array, "B M n d"],
    grids: Int[Array, "B M 2"],
    draws: Int[Array, "B draws"],
    row_keys: Key[Array, " B"],
    flow_time: FlowTime,
) -> Noised:
    """Noises every draw of clean latents at a time of its own. `grids`: their rows and columns."""
    grids = jnp.where((draws >= 0)[..., None], pictures_of(grids, draws), 0)
    clean = pictures_of(latents, draws)
    shifts = flow_time.shift_of(jnp.maximum(grids[..., 0] * grids[..., 1], 1), latents.shape[-1])
    time, noise = draw_noise(clean.shape[1:], row_keys, flow_time.kind, shifts)
    return Noised(interpolate(clean, noise, time), time, grids, clean, noise)


def draw_noise(
    shape: tuple[int, ...],
    row_keys: Key[Array, " B"],
    kind: str = "uniform",
    shifts: float | Float[Array, "B draws"] = 1.0,
) -> tuple[Float32[Array, "B draws"], Float32[Array, "B draws n d"]]:
    """A time per draw and noise for rows of latents of `shape` (draws, n, d).

    One key per row, so that the result does not depend on how rows are spread over devices or
    accumulation steps.
    """

    def draw(key: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array]:
        time_key, noise_key = jax.random.split(key)
        time = sample_time(time_key, shape[:1], kind, shift=shift)
        return time, jax.random.normal(noise_key, shape, jnp.float32)

    shifts = jnp.broadcast_to(jnp.asarray(shifts, jnp.float32), (len(row_keys), shape[0]))
    return jax.vmap(draw)(row_keys, shifts)
