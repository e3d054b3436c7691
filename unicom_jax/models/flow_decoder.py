"""What every pixel decoder does with its network: velocity, flow loss and sampling.

A decoder knows only `channels`: tokens are patches of pixels or packed latents of an autoencoder
(`models/paint_space.py`). Time is the flow's own, t = 1 is data.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unicom_jax.core import flow
from unicom_jax.core.grids import token_mask
from unicom_jax.core.module import Module, Params

Loss = tuple[jax.Array, jax.Array]  # (sum, count)


class FlowDecoder(Module):
    """Base of the pixel decoders: the call gives the network's prediction, here the velocity."""

    channels: int  # numbers in a token, C

    def __call__(
        self,
        params: Params,
        noisy: jax.Array,
        time: jax.Array,
        condition: jax.Array,
        grids: jax.Array,
    ) -> jax.Array:
        """The network's own prediction; 0 at padding.

        Args:
          noisy: (B, N, C) tokens at time t, raster order.
          time: (B,) flow time; 1 is data.
          condition: (B, N, feature_dim) features of the same places.
          grids: (B, 2) int32 rows and columns.

        Returns:
          (B, N, C) fp32.
        """
        raise NotImplementedError(f"{type(self).__name__} predicts nothing")

    def velocity(
        self,
        params: Params,
        noisy: jax.Array,
        time: jax.Array,
        condition: jax.Array,
        grids: jax.Array,
    ) -> jax.Array:
        """dx/dt (B, N, C) at t < 1, for the integrator; arguments as in `__call__`."""
        return self(params, noisy, time, condition, grids)

    def loss(
        self,
        params: Params,
        tokens: jax.Array,
        noise: jax.Array,
        time: jax.Array,
        condition: jax.Array,
        grids: jax.Array,
    ) -> tuple[Loss, jax.Array]:
        """Flow loss of clean `tokens` (B, N, C), noised by `noise` at `time` (B,).

        Returns:
          (sum, count) over valid tokens of the squared velocity error averaged over channels, and
          the predicted clean tokens (B, N, C), for perceptual terms.
        """
        noisy = flow.interpolate(tokens, noise, time)
        speed = self(params, noisy, time, condition, grids)
        clean = flow.velocity_to_data(speed, noisy, time)
        return masked_loss(speed, flow.velocity(tokens, noise), clean, grids)

    def sample(
        self,
        params: Params,
        noise: jax.Array,
        condition: jax.Array,
        grids: jax.Array,
        steps: int = 25,
        sampler: str = "euler",
        shift: float = 1.0,
    ) -> jax.Array:
        """Paints (B, N, C) fp32 tokens from Gaussian `noise` (B, N, C); 0 at padding."""

        def field(x: jax.Array, time: jax.Array) -> jax.Array:
            times = jnp.full(x.shape[:1], time)
            return self.velocity(params, x, times, condition, grids)

        painted = flow.integrate(field, noise, steps, sampler, shift)
        return jnp.where(token_mask(grids, noise.shape[1])[..., None], painted, 0.0)


def masked_loss(
    speed: jax.Array, target: jax.Array, clean: jax.Array, grids: jax.Array
) -> tuple[Loss, jax.Array]:
    """What `loss` returns, from velocities (B, N, C) and clean tokens with anything at padding."""
    valid = token_mask(grids, speed.shape[1])
    return flow.flow_loss(speed, target, valid), jnp.where(valid[..., None], clean, 0.0)
