"""Pixel decoders whose network was released with text as its context.

    features ─ Linear ─ activation ─ Linear ─ context tokens ┐
    noisy packed latents ────────────────────────────────────┴ network ─ velocity

The context tokens replace those of the text. Such networks take time as sigma = 1 - t and give
noise - data; this file alone converts them to ours.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.grids import token_mask
from unicom_jax.core.layers import Mlp
from unicom_jax.core.module import Module, Params, Specs
from unicom_jax.core.scopes import in_module
from unicom_jax.models.flow_decoder import FlowDecoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class ContextDecoder(FlowDecoder):
    """A released network over the packed latents of an image, conditioned on features.

    Attributes:
      transformer: the network; has `channels` and `context_dim`.
      feature_dim: width of the condition.
      compute_dtype: dtype of the activations. Steering, output and losses are fp32.
      hidden_ratio: ratio of the projector's hidden width to the context's.
      activation: of the projector.
    """

    transformer: Module
    feature_dim: int
    compute_dtype: str = "float32"

    hidden_ratio: ClassVar[int]
    activation: ClassVar[str]

    @property
    def channels(self) -> int:
        return self.transformer.channels

    @property
    def projector(self) -> Mlp:
        width = self.transformer.context_dim
        hidden = self.hidden_ratio * width
        return Mlp(self.feature_dim, hidden, width, activation=self.activation)

    def specs(self) -> Specs:
        return {"projector": self.projector.specs(), "transformer": self.transformer.specs()}

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

    @in_module("flow_decoder")
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
        noisy = noisy.astype(self.compute_dtype)
        out = self.predict(params["transformer"], noisy, 1.0 - time, context, lengths, grids)
        return jnp.where(token_mask(grids, noisy.shape[1])[..., None], -out, 0.0)

    def predict(
        self,
        params: Params,
        noisy: Float[Array, "B N C"],
        sigma: Float[Array, " B"],
        context: Float[Array, "B T W"],
        lengths: Int[Array, " B"],
        grids: Int[Array, "B 2"],
    ) -> Float32[Array, "B N C"]:
        """The network's prediction of noise - data; arbitrary at padding."""
        raise NotImplementedError(f"{type(self).__name__} predicts nothing")
