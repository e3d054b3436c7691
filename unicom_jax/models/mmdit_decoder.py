"""Stable Diffusion 3 as the pixel decoder: semantic features take the place of the text.

    features ─ Linear ─ GELU ─ Linear ─ context tokens ┐
    noisy packed latents ──────────────────────────────┴ MM-DiT ─ velocity

The connector is that of UAE (arXiv 2509.09666), whose hidden layer is twice as wide as the context
(2048 → 8192 → 4096). It has no pooled text: that vector is zero. Context tokens have no places, so
a feature itself has to say where on the image it belongs.

Stable Diffusion's time is sigma = 1 - t and its output noise - data. This file alone converts them
to ours.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.grids import token_mask
from unicom_jax.core.layers import Mlp
from unicom_jax.core.module import Params, Specs
from unicom_jax.core.scopes import in_module
from unicom_jax.models.flow_decoder import FlowDecoder
from unicom_jax.models.mmdit import POSITIONS, MMDiT

HIDDEN_RATIO = 2  # ratio of the connector's hidden width to the context's, as in UAE


@dataclasses.dataclass(frozen=True)
class MMDiTDecoder(FlowDecoder):
    """Stable Diffusion 3 over the packed latents of an image, conditioned on its features.

    Attributes:
      feature_dim: width of the condition.
      compute_dtype: dtype of the activations. Steering, output and losses are fp32.
    """

    transformer: MMDiT
    feature_dim: int
    compute_dtype: str = "float32"

    untrained = (f"transformer/{POSITIONS}",)

    @property
    def channels(self) -> int:
        return self.transformer.channels

    @property
    def projector(self) -> Mlp:
        width = self.transformer.context_dim
        return Mlp(self.feature_dim, HIDDEN_RATIO * width, width, activation="gelu")

    def specs(self) -> Specs:
        return {"projector": self.projector.specs(), "transformer": self.transformer.specs()}

    @in_module("flow_decoder")
    def __call__(
        self,
        params: Params,
        noisy: Float[Array, "B N C"],
        time: Float[Array, " B"],
        condition: Float[Array, "B N F"],
        grids: Int[Array, "B 2"],
    ) -> Float32[Array, "B N C"]:
        """The velocity data - noise; see `FlowDecoder`."""
        context = self.connect(params, condition)
        return self.speed(params, noisy, time, context, grids[:, 0] * grids[:, 1], grids)

    def connect(self, params: Params, condition: Float[Array, "*B F"]) -> Float[Array, "*B W"]:
        """Context tokens."""
        return self.projector(params["projector"], condition.astype(self.compute_dtype))

    def speed(
        self,
        params: Params,
        noisy: Float[Array, "B N C"],
        time: Float[Array, " B"],
        context: Float[Array, "B T W"],
        lengths: Int[Array, " B"],
        grids: Int[Array, "B 2"],
    ) -> Float32[Array, "B N C"]:
        """The velocity, given any context of `lengths` tokens; 0 at padding."""
        out = self.transformer(
            params["transformer"],
            noisy.astype(self.compute_dtype),
            context,
            1.0 - time,
            grids,
            lengths=lengths,
        )
        return jnp.where(token_mask(grids, noisy.shape[1])[..., None], -out, 0.0)
