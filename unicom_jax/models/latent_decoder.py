"""The decoder half of a KL autoencoder as a part of a model that trains it.

    packed normalised latents -> denormalise -> unpack -> decoder -> patches of pixels

Its weights are a subtree of the autoencoder's, with the same keys (`decoder`, for one with 1 x 1
convolutions `post_quant_conv`, for one with statistics `statistics`), so a copy of those starts it.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.module import Module, Params, Specs
from unicom_jax.core.scopes import in_module
from unicom_jax.models.paint_space import AUTOENCODER, LatentSpace


@dataclasses.dataclass(frozen=True)
class LatentDecoder(Module):
    """Pictures of latents that need not be clean: those that a model draws, at any time.

    Statistics are measured numbers and get no gradient.

    Attributes:
      space: of the autoencoder that the half is taken from.
    """

    space: LatentSpace

    @property
    def width(self) -> int:
        """Channels at the highest resolution, `ch` in the code of latent diffusion."""
        return self.space.autoencoder.width

    def specs(self) -> Specs:
        return self.space.autoencoder.decoder_specs()

    @in_module("decoder")
    def __call__(
        self,
        params: Params,
        latents: Float[Array, "B N {self.space.channels}"],
        grids: Int[Array, "B 2"],
    ) -> Float32[Array, "B N 3*{self.space.patch}**2"]:
        """Patches in the range of the autoencoder's pictures, not clipped; 0 at padding.

        Args:
          latents: packed and normalised, in the raster of each picture.
          grids: rows and columns of patches.
        """
        return self.space.decode_here({AUTOENCODER: params}, latents, grids)
