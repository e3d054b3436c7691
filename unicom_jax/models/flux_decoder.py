"""FLUX.1 as the pixel decoder: semantic features take the place of the text.

    features ─ Linear ─ SiLU ─ Linear ─ context tokens ┐
    noisy packed latents ──────────────────────────────┴ FLUX ─ velocity

As in UniWorld-V1 (Lin et al. 2025) the context tokens replace T5's and, like those, all have place
zero: a feature itself has to say where on the image it belongs. The pooled vector is zero.

FLUX's time is sigma = 1 - t and its output noise - data. This file alone converts them to ours.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.grids import token_mask, token_places
from unicom_jax.core.layers import Mlp
from unicom_jax.core.module import Params, Specs
from unicom_jax.core.scopes import in_module
from unicom_jax.models.flow_decoder import FlowDecoder
from unicom_jax.models.flux import FluxTransformer
from unicom_jax.models.streams import joint_mask

HIDDEN_RATIO = 3  # ratio of the projector's hidden width to the context's, as in UniWorld-V1


@dataclasses.dataclass(frozen=True)
class FluxDecoder(FlowDecoder):
    """FLUX.1 over the packed latents of an image, conditioned on features of the same places.

    Attributes:
      transformer: has as many output channels as input channels; rotates with (0, row, column).
      feature_dim: width of the condition.
      guidance: scale given to a network that takes one; no second pass is made.
      compute_dtype: dtype of the activations. Steering, output and losses are fp32.
    """

    transformer: FluxTransformer
    feature_dim: int
    guidance: float = 1.0
    compute_dtype: str = "float32"

    def __post_init__(self) -> None:
        if len(self.transformer.rope_dims) != 3:
            raise ValueError(
                f"rope_dims {self.transformer.rope_dims} are not of three axes; a pixel decoder "
                "has places (0, row, column)"
            )
        if self.transformer.channels != self.transformer.out_channels:
            raise ValueError(
                f"a FLUX of {self.transformer.channels} channels in and "
                f"{self.transformer.out_channels} out is not a pixel decoder; take one with as many"
            )

    @property
    def channels(self) -> int:
        return self.transformer.channels

    @property
    def projector(self) -> Mlp:
        width = self.transformer.context_dim
        return Mlp(self.feature_dim, HIDDEN_RATIO * width, width, activation="silu")

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
        batch, tokens = noisy.shape[:2]
        real = grids[:, 0] * grids[:, 1]
        context = self.projector(params["projector"], condition.astype(self.compute_dtype))
        places = jnp.pad(token_places(grids, tokens), ((0, 0), (0, 0), (1, 0)))  # (0, row, column)
        guidance = jnp.full(batch, self.guidance) if self.transformer.guidance_embeds else None
        out = self.transformer(
            params["transformer"],
            noisy.astype(self.compute_dtype),
            context,
            jnp.zeros((batch, self.transformer.pooled_dim)),
            1.0 - time,
            places,
            jnp.zeros((*context.shape[:2], 3), places.dtype),
            guidance,
            joint_mask(real, real, context.shape[1], tokens),
        )
        return jnp.where(token_mask(grids, tokens)[..., None], -out, 0.0)
