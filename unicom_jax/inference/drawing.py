"""Drawing latents behind a cached prefix, with classifier-free guidance in one batch."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.flow import SAMPLERS, guide, integrate
from unicom_jax.core.module import Module, Params
from unicom_jax.models.transformer import KVCache


@dataclasses.dataclass(frozen=True)
class Drawing:
    """How a picture is drawn.

    Attributes:
      steps: flow steps. `sampler`: euler or heun (twice the work a step).
      guidance: 1 follows the words as they are, more exaggerates them. Above 1 every step runs the
        conditional and the unconditional branch as one batch.
      interval: flow times between which guidance acts.
      shift: of the time grid, `core.flow.shift_time`.

    Raises:
      ValueError: an unknown sampler, no step, or an interval that is none. Said here, as what is
        raised inside a compiled program reaches the user with all of JAX's frames.
    """

    steps: int = 20
    guidance: float = 3.0
    sampler: str = "euler"
    interval: tuple[float, float] = (0.0, 1.0)
    shift: float = 1.0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(
                f"sampler {self.sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}"
            )
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; drawing needs at least 1")
        if not 0.0 <= self.interval[0] < self.interval[1] <= 1.0:
            raise ValueError(
                f"guidance_interval {self.interval} is none; give two flow times from 0 (noise) "
                "to 1 (picture), the lower one first"
            )

    @property
    def branches(self) -> int:
        return 1 if self.guidance == 1.0 else 2


def draw_latents(
    pathway: Module,
    params: Params,
    cache: KVCache,
    positions: Int[Array, "B n 2"],
    mask: MaskIntervals,
    grids: Int[Array, "B 2"],
    noise: Float[Array, "pictures n d"],
    settings: Drawing,
    *,
    start: int,
) -> Float[Array, "pictures n d"]:
    """Integrates the model's velocity from noise to normalised latents.

    The prefix was read once; each step runs the image's tokens only.

    Args:
      cache: B = pictures * `settings.branches` prefixes, all conditional ones first, in slots
        [0, start); room for n more.
      mask: of the n tokens, in cache slots.
      grids: token rows and columns.
    """
    context = pathway.begin_drawing(params, cache, positions, mask, grids, start)

    def velocity(latents: jax.Array, time: jax.Array) -> jax.Array:
        if settings.branches == 1:
            return pathway.velocity(params, context, latents, _per_row(time, latents))
        both = jnp.concatenate([latents, latents])
        conditional, unconditional = jnp.split(
            pathway.velocity(params, context, both, _per_row(time, both)), 2
        )
        return guide(conditional, unconditional, settings.guidance, time, settings.interval)

    return integrate(velocity, noise, settings.steps, settings.sampler, settings.shift)


def _per_row(time: jax.Array, latents: jax.Array) -> jax.Array:
    return jnp.broadcast_to(time, latents.shape[:1])
