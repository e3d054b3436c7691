"""KL autoencoders: latent diffusion's and FLUX.1's, and FLUX.2's. Images are in [-1, 1].

    images -> encode -> raw latents (B, h/f, w/f, c) -> pack -> tokens -> normalise -> drawn
    drawn -> denormalise -> tokens -> unpack -> raw latents -> decode -> images

A model draws normalised *tokens*: squares of side x side latents, packed channel-major
(`models/paint_space.py`). The two kinds differ only in the normalisation:

    AutoencoderKL        one shift and one scale for all numbers
    AutoencoderKLFlux2   mean and variance of each packed channel, measured and kept as weights

The classes and their weights have the names of diffusers.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unicom_jax.core.attention import check_backend
from unicom_jax.core.module import Module, Params, ParamSpec, Specs, ones, zeros
from unicom_jax.core.scopes import in_module
from unicom_jax.models.autoencoder_layers import Conv, Half, specs_of
from unicom_jax.models.extent import Extent

# The latents of images (B, h, w, 3).
Latents = Float[Array, "B h/{self.factor} w/{self.factor} {self.latent_channels}"]


@dataclasses.dataclass(frozen=True)
class Autoencoder(Module):
    """Images (B, h, w, 3) to raw latents (B, h/f, w/f, c) and back; f is `factor`.

    Attributes:
      latent_channels: c.
      widths: channels of each resolution, highest first; each is a multiple of `groups`.
      resnets: ResNets per block in the encoder; the decoder has one more.
      groups: number of groups in the group norms.
      quant_conv: whether 1 x 1 convolutions surround the latents.
      attention_backend: "dense" or "chunked"; the single head has all channels, which is too wide
        for the kernels of "fused".
      remat: recompute the blocks' layers in the backward pass to save memory.
    """

    latent_channels: int
    widths: tuple[int, ...]
    resnets: int = 2
    groups: int = 32
    quant_conv: bool = False
    image_channels: int = 3
    attention_backend: str = "dense"
    remat: bool = False

    def __post_init__(self) -> None:
        check_backend(self.attention_backend)
        if any(width % self.groups for width in self.widths):
            raise ValueError(
                f"autoencoder widths {self.widths} are not all multiples of groups={self.groups}; "
                "change widths or groups"
            )

    @property
    def factor(self) -> int:
        """Pixels along a side of a latent."""
        return 2 ** (len(self.widths) - 1)

    @property
    def width(self) -> int:
        """Channels at the highest resolution, `ch` in the code of latent diffusion."""
        return self.widths[0]

    @property
    def _parts(self) -> dict[str, Module]:
        image, latent, widths = self.image_channels, self.latent_channels, self.widths
        half = partial(Half, groups=self.groups, backend=self.attention_backend, remat=self.remat)
        parts: dict[str, Module] = {
            "encoder": half(image, 2 * latent, widths, self.resnets, up=False),
            "decoder": half(latent, image, widths[::-1], self.resnets + 1, up=True),
        }
        if self.quant_conv:
            parts["quant_conv"] = Conv(2 * latent, 2 * latent, size=1)
            parts["post_quant_conv"] = Conv(latent, latent, size=1)
        return parts

    def specs(self) -> Specs:
        return specs_of(self._parts)

    def decoder_specs(self) -> Specs:
        """The weights that `denormalise` and `decode` read."""
        return {k: v for k, v in self.specs().items() if k not in ("encoder", "quant_conv")}

    def moments(
        self, params: Params, images: Float[Array, "B h w 3"], extent: Extent | None = None
    ) -> tuple[Latents, Latents]:
        """Mean and log-variance of the posterior over raw latents."""
        height, width = images.shape[1:3]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"image of {height} x {width} pixels does not divide by {self.factor}; resize "
                f"it so that both sides are multiples of {self.factor}"
            )
        parts = self._parts
        moments = parts["encoder"](params["encoder"], images, extent)
        if self.quant_conv:
            moments = parts["quant_conv"](params["quant_conv"], moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    @in_module("autoencoder")
    def encode(
        self, params: Params, images: Float[Array, "B h w 3"], extent: Extent | None = None
    ) -> Latents:
        """Raw latents: means of the posterior.

        Places beyond an `extent` may hold anything; a canvas may be larger than all its pictures.
        """
        return self.moments(params, images, extent)[0]

    @in_module("autoencoder")
    def decode(
        self,
        params: Params,
        latents: Float[Array, "B h w {self.latent_channels}"],
        extent: Extent | None = None,
    ) -> Float[Array, "B h*{self.factor} w*{self.factor} 3"]:
        """Images from raw latents, about [-1, 1]. `params`: all, or those of `decoder_specs`."""
        features = self.decoder_features(params, latents, extent)
        return self.output(params["decoder"]["conv_out"], features, extent)

    @in_module("autoencoder")
    def decoder_features(
        self,
        params: Params,
        latents: Float[Array, "B h w {self.latent_channels}"],
        extent: Extent | None = None,
    ) -> Float[Array, "B h*{self.factor} w*{self.factor} {self.width}"]:
        """The input of the decoder's last convolution, `output`."""
        parts = self._parts
        if self.quant_conv:
            latents = parts["post_quant_conv"](params["post_quant_conv"], latents)
        return parts["decoder"].features(params["decoder"], latents, extent)

    def output(
        self, params: Params, features: Float[Array, "B h w {self.width}"], extent: Extent | None
    ) -> Float[Array, "B h w 3"]:
        """The decoder's last convolution; `params`: its weights alone."""
        return self._parts["decoder"].output(params, features, extent)

    def __call__(self, params: Params, images: Float[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
        """Reconstructs images through the posterior's mean."""
        return self.decode(params, self.encode(params, images))

    def check_side(self, side: int) -> None:
        """Raises a ValueError where tokens of side x side latents cannot be normalised."""

    def normalise(self, params: Params, tokens: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        """Scales packed raw latents to about unit variance."""
        raise NotImplementedError

    def denormalise(self, params: Params, tokens: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        """Inverse of `normalise`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class AutoencoderKL(Autoencoder):
    """The autoencoder of latent diffusion and of FLUX.1.

    Attributes:
      scale, shift: normalised latents are (z - shift) * scale.
    """

    scale: float = 1.0
    shift: float = 0.0

    def normalise(self, params: Params, tokens: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        del params
        return (tokens - self.shift) * self.scale

    def denormalise(self, params: Params, tokens: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        del params
        return tokens / self.scale + self.shift


@dataclasses.dataclass(frozen=True)
class AutoencoderKLFlux2(Autoencoder):
    """FLUX.2's autoencoder: statistics normalise packed channels, as a BatchNorm without affine.

    The statistics are measured and not learned, so they get no gradient.

    Attributes:
      side: latents along a side of a packed square, which has `side`² c channels.
      eps: added to the variance.
    """

    side: int = 2
    eps: float = 1e-4

    @property
    def packed_channels(self) -> int:
        return self.side**2 * self.latent_channels

    def specs(self) -> Specs:
        shape = (self.packed_channels,)
        statistics = {
            "mean": ParamSpec(shape, (None,), zeros),
            "variance": ParamSpec(shape, (None,), ones),
        }
        return {**super().specs(), "statistics": statistics}

    def check_side(self, side: int) -> None:
        if side != self.side:
            raise ValueError(
                f"the autoencoder has statistics of squares of {self.side} x {self.side} latents, "
                f"and a patch has {side} x {side}; set data.patch={self.side * self.factor}"
            )

    def normalise(self, params: Params, tokens: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        mean, deviation = self._statistics(params)
        return (tokens - mean) / deviation

    def denormalise(self, params: Params, tokens: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        mean, deviation = self._statistics(params)
        return tokens * deviation + mean

    def _statistics(self, params: Params) -> tuple[jax.Array, jax.Array]:
        found = jax.lax.stop_gradient(params["statistics"])
        return found["mean"], jnp.sqrt(found["variance"] + self.eps)


# By the name in a folder's config.json and in a run's `codec.autoencoder.facts`.
KINDS: dict[str, type[Autoencoder]] = {
    kind.__name__: kind for kind in (AutoencoderKL, AutoencoderKLFlux2)
}


def flux_autoencoder() -> AutoencoderKL:
    """The sizes of FLUX.1's autoencoder: 16 channels at an eighth of the resolution."""
    return AutoencoderKL(16, (128, 256, 512, 512), resnets=2, scale=0.3611, shift=0.1159)


def flux2_autoencoder() -> AutoencoderKLFlux2:
    """The sizes of FLUX.2's autoencoder: 32 channels at an eighth of the resolution."""
    return AutoencoderKLFlux2(32, (128, 256, 512, 512), resnets=2, quant_conv=True)
