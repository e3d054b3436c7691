"""`LatentCodec`: the space in which a unified model draws. One protocol for all kinds of latents.

    encode   features, or patches of pixels, to normalised latents (B, n, latent_dim)
    decode   normalised latents to tokens of the paint space

`models/codec.py` is the attention compressor with a diffusion pixel decoder; `AutoencoderCodec` is
a KL autoencoder.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
from jaxtyping import Array, Float, Float32, Int

from unicom_jax.core.module import Module, Params, Specs
from unicom_jax.models.paint_space import AUTOENCODER, LatentSpace


class LatentCodec(Module):
    """Base of the codecs.

    Attributes:
      latent_dim: channels d of a latent.
      reads: what `encode` takes: "features" of the frozen encoder, or "pixels", patches in [-1, 1].
      pool: patches along a side of a latent.
    """

    latent_dim: int
    reads: Literal["features", "pixels"] = "features"
    pool: int = 1

    @property
    def noise_channels(self) -> int:
        """Channels of the noise from which `decode` paints by a flow; 0 if it needs none."""
        return 0

    @property
    def canvas(self) -> LatentSpace | None:
        """The space of whole pictures in which the codec itself computes; None: token by token."""
        return None

    def on(self, canvas: LatentSpace) -> LatentCodec:
        """The same codec for pictures on another canvas."""
        raise NotImplementedError(f"{type(self).__name__} has no canvas")

    def grid(self, grids: Int[Array, "*B 2"]) -> Int[Array, "*B 2"]:
        """Rows and columns of latents of pictures with `grids` patches."""
        return grids // self.pool

    def encode(
        self, params: Params, inputs: Float[Array, "B N C"], grids: Int[Array, "B 2"]
    ) -> Float32[Array, "B n d"]:
        """Normalised latents: what the unified model sees and draws. `grids` counts patches."""
        raise NotImplementedError(f"{type(self).__name__} encodes nothing")

    def decode(
        self,
        params: Params,
        latents: Float[Array, "B n d"],
        grids: Int[Array, "B 2"],
        noise: Float[Array, "B N c"],
        steps: int,
        sampler: str = "euler",
    ) -> Float32[Array, "B N c"]:
        """Tokens of the paint space from normalised latents.

        Args:
          grids: rows and columns of patches.
          noise: unit Gaussian of `noise_channels` channels; ignored if there are none.
          steps, sampler: for the flow that starts at the noise.
        """
        raise NotImplementedError(f"{type(self).__name__} decodes nothing")

    def normalise(self, params: Params, raw: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
        """Scales raw latents to about unit variance for drawing; here they have it already."""
        del params
        return raw

    def denormalise(self, params: Params, latents: Float[Array, "*B d"]) -> Float[Array, "*B d"]:
        """Inverse of `normalise`."""
        del params
        return latents


@dataclasses.dataclass(frozen=True)
class AutoencoderCodec(LatentCodec):
    """The packed latents of a KL autoencoder, normalised as the autoencoder does it.

    The weights, `params` of every method, are those of the autoencoder.

    Attributes:
      space: the autoencoder and the canvas of the pictures that it sees.
      darkest: the value of black in the autoencoder's pictures; white is 1. Pixels outside the
        codec are always in [-1, 1]. The released Cheers weights use 0.
    """

    space: LatentSpace
    darkest: float = -1.0

    reads = "pixels"

    @property
    def latent_dim(self) -> int:
        return self.space.channels

    @property
    def canvas(self) -> LatentSpace:
        return self.space

    def on(self, canvas: LatentSpace) -> AutoencoderCodec:
        return dataclasses.replace(self, space=canvas)

    def specs(self) -> Specs:
        return self.space.autoencoder.specs()

    def encode(
        self, params: Params, inputs: Float[Array, "B N C"], grids: Int[Array, "B 2"]
    ) -> Float32[Array, "B N {self.latent_dim}"]:
        if self.darkest != -1.0:
            inputs = self.darkest + (1.0 - self.darkest) * (inputs + 1.0) / 2.0
        return self.space.encode({AUTOENCODER: params}, inputs, grids)

    def decode(
        self,
        params: Params,
        latents: Float[Array, "B N {self.latent_dim}"],
        grids: Int[Array, "B 2"],
        noise: jax.Array | None = None,
        steps: int = 1,
        sampler: str = "euler",
    ) -> Float32[Array, "B N C"]:
        """Patches of pixels, which the autoencoder paints itself."""
        del noise, steps, sampler
        pixels = self.space.decode({AUTOENCODER: params}, latents, grids)
        if self.darkest != -1.0:
            pixels = 2.0 * (pixels - self.darkest) / (1.0 - self.darkest) - 1.0
        return pixels

    def normalise(
        self, params: Params, raw: Float[Array, "*B {self.latent_dim}"]
    ) -> Float[Array, "*B {self.latent_dim}"]:
        """Normalises packed raw latents."""
        return self.space.autoencoder.normalise(params, raw)

    def denormalise(
        self, params: Params, latents: Float[Array, "*B {self.latent_dim}"]
    ) -> Float[Array, "*B {self.latent_dim}"]:
        return self.space.autoencoder.denormalise(params, latents)
