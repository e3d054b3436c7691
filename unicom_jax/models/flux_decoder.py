"""FLUX.1 as the pixel decoder: semantic features take the place of the text.

As in UniWorld-V1 (Lin et al. 2025) the context tokens replace T5's and, like those, all have place
zero: a feature itself has to say where on the image it belongs. The pooled vector is zero.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.grids import token_places
from unicom_jax.core.module import Params
from unicom_jax.models.context_decoder import ContextDecoder
from unicom_jax.models.flux import FluxTransformer
from unicom_jax.models.streams import joint_mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class FluxDecoder(ContextDecoder):
    """FLUX.1, conditioned on features of the same places; see `ContextDecoder`.

    Attributes:
      transformer: has as many output channels as input channels; rotates with (0, row, column).
      guidance: scale given to a network that takes one; no second pass is made.
    """

    transformer: FluxTransformer
    guidance: float = 1.0

    hidden_ratio = 3
    activation = "silu"

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

    def predict(
        self,
        params: Params,
        noisy: Float[Array, "B N C"],
        sigma: Float[Array, " B"],
        context: Float[Array, "B T W"],
        lengths: Int[Array, " B"],
        grids: Int[Array, "B 2"],
    ) -> Float32[Array, "B N C"]:
        (batch, tokens), slots = noisy.shape[:2], context.shape[1]
        places = jnp.pad(token_places(grids, tokens), ((0, 0), (0, 0), (1, 0)))  # (0, row, column)
        return self.transformer(
            params,
            noisy,
            context,
            jnp.zeros((batch, self.transformer.pooled_dim)),
            sigma,
            places,
            jnp.zeros((batch, slots, 3), places.dtype),
            jnp.full(batch, self.guidance) if self.transformer.guidance_embeds else None,
            joint_mask(lengths, grids[:, 0] * grids[:, 1], slots, tokens),
        )
