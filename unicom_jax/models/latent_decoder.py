"""The decoder of a KL autoencoder as part of a model that trains it.

    packed normalised latents -> denormalise -> unpack -> decoder -> patches of pixels

Its weights are a subtree of the autoencoder's, with the same keys (`decoder`; `post_quant_conv` if
it has 1 x 1 convolutions; `statistics` if it has them), so it can start from a copy of those.
"""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.module import Module, Params, Specs
from unicom_jax.core.scopes import in_module
from unicom_jax.models.paint_space import AUTOENCODER, LatentSpace


@dataclasses.dataclass(frozen=True)
class LatentDecoder(Module):
    """Decodes latents that need not be clean: those that a model draws, at any flow time.

    Statistics are measured numbers and get no gradient.

    Attributes:
      space: the space of the autoencoder that the decoder is taken from.
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
          latents: packed and normalised, in each picture's raster order.
          grids: rows and columns of patches.
        """
        return self.space.decode_here({AUTOENCODER: params}, latents, grids)
