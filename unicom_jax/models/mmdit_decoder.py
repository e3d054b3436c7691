"""Stable Diffusion 3 as the pixel decoder: semantic features take the place of the text.

The connector is that of UAE (arXiv 2509.09666), whose hidden layer is twice as wide as the context
(2048 → 8192 → 4096). It has no pooled text: that vector is zero. Context tokens have no places, so
a feature itself has to say where on the image it belongs.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.module import Params
from unicom_jax.models.context_decoder import ContextDecoder
from unicom_jax.models.mmdit import POSITIONS, MMDiT


@dataclasses.dataclass(frozen=True, kw_only=True)
class MMDiTDecoder(ContextDecoder):
    """Stable Diffusion 3; see `ContextDecoder`."""

    transformer: MMDiT

    hidden_ratio = 2
    activation = "gelu"
    untrained = (f"transformer/{POSITIONS}",)

    def predict(
        self,
        params: Params,
        noisy: Float[Array, "B N C"],
        sigma: Float[Array, " B"],
        context: Float[Array, "B T W"],
        lengths: Int[Array, " B"],
        grids: Int[Array, "B 2"],
    ) -> Float32[Array, "B N C"]:
        return self.transformer(params, noisy, context, sigma, grids, lengths=lengths)
