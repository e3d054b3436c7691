"""A convolutional discriminator that judges patches, and an autoencoder that is trained with it.

It follows PatchGAN (Isola et al. 2017) as used by taming-transformers and latent diffusion (Esser
et al. 2021, Rombach et al. 2022): strided convolutions that double the channels, and one logit for
each place of the last grid. The norms are GroupNorms, so a picture's logits depend on no other
picture.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
from jaxtyping import Array, Float

from unicom_jax.core.module import Module, Params, Specs
from unicom_jax.models.autoencoder import AutoencoderKLFlux2
from unicom_jax.models.autoencoder_layers import Conv, GroupNorm
from unicom_jax.models.extent import Extent

SLOPE = 0.2  # slope of the leaky ReLU
MOST = 8  # the widest layer is at most this multiple of the first width


@dataclasses.dataclass(frozen=True)
class PatchDiscriminator(Module):
    """Images (B, h, w, 3) to logits (B, h / 2^layers, w / 2^layers, 1), high for real ones.

    Attributes:
      width: channels after the first convolution, a multiple of `groups`.
      layers: convolutions of stride 2.
      groups: groups of the group norms, which follow all but the first and the last convolution.
    """

    width: int = 64
    layers: int = 3
    groups: int = 32
    image_channels: int = 3

    def __post_init__(self) -> None:
        if self.width % self.groups:
            raise ValueError(
                f"discriminator width {self.width} is not a multiple of groups={self.groups}; "
                "change width or groups"
            )

    @property
    def _parts(self) -> dict[str, Module]:
        widths = [self.width * min(2**layer, MOST) for layer in range(self.layers)]
        parts: dict[str, Module] = {"conv0": Conv(self.image_channels, self.width, stride=2)}
        for layer in range(1, self.layers):
            parts[f"conv{layer}"] = Conv(widths[layer - 1], widths[layer], stride=2)
            parts[f"norm{layer}"] = GroupNorm(widths[layer], self.groups)
        parts["logits"] = Conv(widths[-1], 1)
        return parts

    def specs(self) -> Specs:
        return {name: part.specs() for name, part in self._parts.items()}

    def __call__(
        self, params: Params, images: Float[Array, "B h w 3"], extent: Extent | None = None
    ) -> Float[Array, "B _h _w 1"]:
        parts, x = self._parts, images
        leak = partial(jax.nn.leaky_relu, negative_slope=SLOPE)
        for layer in range(self.layers):
            conv, norm = f"conv{layer}", f"norm{layer}"
            x = parts[conv](params[conv], x, extent)
            x = leak(parts[norm](params[norm], x, extent) if norm in parts else x)
        return parts["logits"](params["logits"], x, extent)


@dataclasses.dataclass(frozen=True)
class AdversarialAutoencoder(Module):
    """The weights of an autoencoder together with those of a discriminator."""

    autoencoder: AutoencoderKLFlux2
    discriminator: PatchDiscriminator

    def specs(self) -> Specs:
        return {**self.autoencoder.specs(), "discriminator": self.discriminator.specs()}
