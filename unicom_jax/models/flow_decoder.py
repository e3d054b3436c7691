"""What every pixel decoder does with its network: velocity, flow loss and sampling.

A decoder knows only `channels`: tokens are patches of pixels or packed latents of an autoencoder
(`models/paint_space.py`). Time is flow time: t = 1 is data.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core import flow
from unicom_jax.core.grids import token_mask
from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Module, Params


class FlowDecoder(Module):
    """Base of the pixel decoders. A call returns the network's prediction, here the velocity.

    `channels`: numbers in a token, C. `untrained`: patterns of the paths of weights that no stage
    trains.
    """

    channels: int
    untrained: tuple[str, ...] = ()

    def __call__(
        self,
        params: Params,
        noisy: Float[Array, "B N C"],
        time: Float[Array, " B"],
        condition: Float[Array, "B N F"],
        grids: Int[Array, "B 2"],
    ) -> Float32[Array, "B N C"]:
        """The network's own prediction; 0 at padding.

        Args:
          noisy: tokens at time t, raster order.
          time: flow time; 1 is data.
          condition: features of the same places.
          grids: rows and columns.
        """
        raise NotImplementedError(f"{type(self).__name__} predicts nothing")

    def velocity(
        self,
        params: Params,
        noisy: Float[Array, "B N C"],
        time: Float[Array, " B"],
        condition: Float[Array, "B N F"],
        grids: Int[Array, "B 2"],
    ) -> Float32[Array, "B N C"]:
        """dx/dt at t < 1, for the integrator; arguments as in `__call__`."""
        return self(params, noisy, time, condition, grids)

    def loss(
        self,
        params: Params,
        tokens: Float[Array, "B N C"],
        noise: Float[Array, "B N C"],
        time: Float[Array, " B"],
        condition: Float[Array, "B N F"],
        grids: Int[Array, "B 2"],
    ) -> tuple[LossTerms, Float32[Array, "B N C"]]:
        """Flow loss of clean `tokens`, noised by `noise` at `time`.

        Returns:
          Loss terms over valid tokens: the squared velocity error averaged over channels, as `flow`
          and its parts by time (`core.flow.flow_terms`). Also the predicted clean tokens, for
          perceptual terms.
        """
        noisy = flow.interpolate(tokens, noise, time)
        speed = self(params, noisy, time, condition, grids)
        clean = flow.velocity_to_data(speed, noisy, time)
        return masked_loss(speed, flow.velocity(tokens, noise), clean, time, grids)

    def sample(
        self,
        params: Params,
        noise: Float[Array, "B N C"],
        condition: Float[Array, "B N F"],
        grids: Int[Array, "B 2"],
        steps: int = 25,
        sampler: str = "euler",
        shift: float = 1.0,
    ) -> Float32[Array, "B N C"]:
        """Paints tokens from Gaussian `noise`; 0 at padding."""

        def field(x: jax.Array, time: jax.Array) -> jax.Array:
            times = jnp.full(x.shape[:1], time)
            return self.velocity(params, x, times, condition, grids)

        painted = flow.integrate(field, noise, steps, sampler, shift)
        return jnp.where(token_mask(grids, noise.shape[1])[..., None], painted, 0.0)


def masked_loss(
    speed: Float[Array, "B N C"],
    target: Float[Array, "B N C"],
    clean: Float[Array, "B N C"],
    time: Float[Array, " B"],
    grids: Int[Array, "B 2"],
) -> tuple[LossTerms, Float32[Array, "B N C"]]:
    """What `loss` returns, from velocities and clean tokens with arbitrary values at padding."""
    valid = token_mask(grids, speed.shape[1])
    terms = flow.flow_terms(speed, target, valid, time[:, None])
    return terms, jnp.where(valid[..., None], clean, 0.0)
