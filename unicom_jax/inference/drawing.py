"""Draws latents after a cached prefix, with all guidance branches of a step in one batch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.flow import TIME_GRIDS, begin_from, integrate, time_grid
from unicom_jax.core.flow_steps import SAMPLERS
from unicom_jax.core.grids import token_mask
from unicom_jax.core.module import Module, Params
from unicom_jax.inference.guidance import (
    CONDITIONAL,
    PICTURELESS,
    RENORMALISATIONS,
    WORDLESS,
    Scales,
    combine,
)
from unicom_jax.models.transformer import KVCache


class DrawingNumbers(NamedTuple):
    """The numbers of a `Drawing`: arguments of a program, not part of it."""

    scales: Scales
    low: float
    high: float
    shift: float


class Plan(NamedTuple):
    """The static settings for which a drawing program is compiled.

    Attributes:
      steps, start, grid: those of its flow times, see `core.flow.time_grid`.
      gated: guidance acts only within an interval, so some steps compute only the conditional
        branch.
    """

    branches: tuple[str, ...]
    steps: int
    start: float
    grid: str
    sampler: str
    gated: bool
    renorm: str


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How a picture is drawn.

    Attributes:
      steps: flow steps. `sampler`: euler or heun (twice the work per step).
      guidance: 1 follows the words as they are, more exaggerates them. If it is not 1, every step
        also computes a branch without the words.
      guidance_interval: flow times between which guidance acts; outside, only the conditional
        branch is computed.
      image_guidance: 1 follows the pictures of the prompt (the source of an edit) as they are, more
        exaggerates them, with one more branch, without pictures (BAGEL, arXiv 2505.14683). Meant
        for models trained with `image_dropout`. Has no effect on prompts without pictures.
      renorm: how guided velocities are kept from growing beyond the conditional one, a key of
        `guidance.RENORMALISATIONS`; `renorm_min`: the least factor it may apply.
      shift: that of the time grid (`core.flow.shift_time`); None: as in training.
      edit_start: flow time, before the shift, at which an edit begins: from its source mixed with
        the noise of that time. 0: every picture begins as noise.
      grid: the flow times, one of `core.flow.TIME_GRIDS`.
      codec_steps: flow steps of the pixel decoder; None: the configuration's.

    Raises:
      ValueError: an unknown sampler, renorm or grid, no step, or a number out of its range. Raised
        here, since errors inside a compiled program reach the user with all of JAX's frames.
    """

    steps: int = 20
    guidance: float = 3.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    sampler: str = "euler"
    image_guidance: float = 1.0
    renorm: str = "none"
    renorm_min: float = 0.0
    shift: float | None = None
    edit_start: float = 0.0
    grid: str = "even"
    codec_steps: int | None = None

    def __post_init__(self) -> None:
        tables = {"sampler": SAMPLERS, "renorm": RENORMALISATIONS, "grid": TIME_GRIDS}
        for name, table in tables.items():
            if getattr(self, name) not in table:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is unknown; choose one of {', '.join(table)}"
                )
        for name in ("steps", "codec_steps"):
            if (count := getattr(self, name)) is not None and count < 1:
                raise ValueError(f"{name} is {count}; drawing needs at least 1")
        for name in ("guidance", "image_guidance"):
            if not math.isfinite(scale := getattr(self, name)):
                raise ValueError(f"{name} is {scale}; give a finite number")
        low, high = self.guidance_interval
        if not 0.0 <= low < high <= 1.0:
            raise ValueError(
                f"guidance_interval {self.guidance_interval} is not an interval; give two flow "
                "times from 0 (noise) to 1 (picture), the lower one first"
            )
        if self.shift is not None and not 0 < self.shift < math.inf:
            raise ValueError(f"shift is {self.shift}; give a number above 0, 1 for even steps")
        if not 0.0 <= self.renorm_min <= 1.0:
            raise ValueError(f"renorm_min is {self.renorm_min}; give a factor from 0 to 1")
        if not 0.0 <= self.edit_start < 1.0:
            raise ValueError(
                f"edit_start is {self.edit_start}; give a flow time from 0 (noise) to below 1 (the "
                "source as it is)"
            )
        time_grid(self.steps, start=self.edit_start, kind=self.grid)  # raises if there is none

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that a step computes, the conditional one first."""
        wordless = (WORDLESS,) * (self.guidance != 1.0)
        return (CONDITIONAL, *wordless, *(PICTURELESS,) * (self.image_guidance != 1.0))

    @property
    def plan(self) -> Plan:
        guided = len(self.branches) > 1
        gated = guided and tuple(self.guidance_interval) != (0.0, 1.0)
        renorm = self.renorm if guided else "none"
        times = self.steps, self.edit_start, self.grid
        return Plan(self.branches, *times, self.sampler, gated, renorm)

    @property
    def numbers(self) -> DrawingNumbers:
        scales = Scales(*map(np.float32, (self.guidance, self.image_guidance, self.renorm_min)))
        shift = 1.0 if self.shift is None else self.shift
        return DrawingNumbers(scales, *map(np.float32, (*self.guidance_interval, shift)))


def draw_latents(
    pathway: Module,
    params: Params,
    cache: KVCache,
    positions: Int[Array, "B s 2"],
    mask: MaskIntervals,
    grids: Int[Array, "R 2"],
    noise: Float[Array, "R n d"],
    start: Int[Array, ""],
    numbers: DrawingNumbers,
    plan: Plan,
    source: Float[Array, "R n d"] | None = None,
) -> Float[Array, "R n d"]:
    """Integrates the model's velocity from noise to normalised latents of R pictures.

    The prefix has been read already; each step runs only the image's tokens.

    Args:
      cache: B = R * branches prefixes in slots [0, start), those of a picture next to each other,
        with s more slots free.
      positions, mask: those of the s slots of the picture, with the mask in cache slots.
      grids: rows and columns of its n tokens. What is computed after the last one is arbitrary.
      source: latents with which the pictures begin if `plan.start` is later than 0.
    """
    branches = len(plan.branches)
    if plan.start:
        noise = begin_from(source, noise, plan.start, numbers.shift, grid=plan.grid)
    times = {"start": plan.start, "grid": plan.grid, "shift": numbers.shift}

    def field(rows: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
        """(latents, time) -> velocities (R, rows, n, d) of the first `rows` branches."""

        def of(x: jax.Array, axis: int = 0) -> jax.Array:
            return _first_rows(x, axis, branches, rows)

        context = pathway.begin_drawing(
            params,
            jax.tree.map(lambda x: of(x, 1), cache),
            of(positions),
            jax.tree.map(of, mask),
            grids.repeat(rows, axis=0),
            start,
        )

        def velocities(latents: jax.Array, time: jax.Array) -> jax.Array:
            repeated = latents.repeat(rows, axis=0)
            times = jnp.broadcast_to(time, repeated.shape[:1])
            found = pathway.velocity(params, context, repeated, times)
            return found.reshape(-1, rows, *found.shape[1:])

        return velocities

    if branches == 1:
        every = field(1)
        return integrate(
            lambda z, time: every(z, time)[:, 0], noise, plan.steps, plan.sampler, **times
        )
    every, valid = field(branches), token_mask(grids, noise.shape[1])

    def guided(latents: jax.Array, time: jax.Array) -> jax.Array:
        found = jnp.moveaxis(every(latents, time), 1, 0)
        return combine(
            dict(zip(plan.branches, found, strict=True)), numbers.scales, plan.renorm, valid
        )

    velocity = guided
    if plan.gated:
        conditional = field(1)

        def velocity(latents: jax.Array, time: jax.Array) -> jax.Array:
            inside = (time >= numbers.low) & (time <= numbers.high)
            return jax.lax.cond(inside, guided, lambda z, t: conditional(z, t)[:, 0], latents, time)

    return integrate(velocity, noise, plan.steps, plan.sampler, **times)


def _first_rows(x: jax.Array, axis: int, branches: int, rows: int) -> jax.Array:
    """The first `rows` of the `branches` rows of each picture, without communication between
    devices."""
    if rows == branches:
        return x
    shape = x.shape
    split = x.reshape(*shape[:axis], -1, branches, *shape[axis + 1 :])
    kept = jax.lax.slice_in_dim(split, 0, rows, axis=axis + 1)
    return kept.reshape(*shape[:axis], -1, *shape[axis + 1 :])
