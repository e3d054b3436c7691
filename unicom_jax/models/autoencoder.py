"""The convolutional KL autoencoder of latent diffusion and FLUX, channels last.

Architecture and weight names are those of `AutoencoderKL` in diffusers (Rombach et al. 2022):
residual blocks with GroupNorm and SiLU, one attention block in the middle, 3 x 3 convolutions that
halve the image or double it again. Images are in [-1, 1].

Pictures of several shapes share a batch as the upper left part of one canvas. An `Extent` says how
far each goes; every layer then treats what is beyond as it treats what is beyond an image's
edge, so a picture's latents do not depend on its canvas.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from unicom_jax.core.activations import PICTURES, place
from unicom_jax.core.attention import attention, check_backend
from unicom_jax.core.layers import Linear
from unicom_jax.core.module import Module, Params, ParamSpec, Specs, ones, zeros
from unicom_jax.core.precision import precision_of
from unicom_jax.models.extent import Extent

Parts = Mapping[str, Any]  # nested dict of modules, of the shape of the weights
# Of images (B, h, w, 3).
Latents = Float[Array, "B h/{self.factor} w/{self.factor} {self.latent_channels}"]


def _specs(parts: Parts) -> Specs:
    return {
        name: part.specs() if isinstance(part, Module) else _specs(part)
        for name, part in parts.items()
    }


def _numbered(modules: list[Module]) -> dict[str, Module]:
    return {str(index): module for index, module in enumerate(modules)}


@dataclasses.dataclass(frozen=True)
class Conv(Module):
    """Square convolution with bias. Stride 1 keeps the size; stride 2 pads below and right only."""

    in_dim: int
    out_dim: int
    size: int = 3
    stride: int = 1

    def specs(self) -> Specs:
        shape = (self.size, self.size, self.in_dim, self.out_dim)
        return {
            "kernel": ParamSpec(shape, (None, None, None, "embed")),
            "bias": ParamSpec((self.out_dim,), (None,), zeros),
        }

    def __call__(
        self, params: Params, x: Float[Array, "B h w {self.in_dim}"], extent: Extent | None = None
    ) -> Float[Array, "B h//{self.stride} w//{self.stride} {self.out_dim}"]:
        if extent is not None:  # zeros beyond the edge, as the padding of the convolution
            x = jnp.where(extent.mask(x), x, 0)
        y = jax.lax.conv_general_dilated(
            x,
            params["kernel"].astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding="SAME" if self.stride == 1 else ((0, 1), (0, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision_of(x.dtype),
        )
        return place(y + params["bias"].astype(x.dtype), PICTURES)


@dataclasses.dataclass(frozen=True)
class GroupNorm(Module):
    """Normalises groups of channels over channels and places, in fp32 (Wu & He 2018)."""

    dim: int
    groups: int
    eps: float = 1e-6

    def specs(self) -> Specs:
        return {
            "scale": ParamSpec((self.dim,), (None,), ones),
            "bias": ParamSpec((self.dim,), (None,), zeros),
        }

    def __call__(
        self, params: Params, x: Float[Array, "B h w {self.dim}"], extent: Extent | None = None
    ) -> Float[Array, "B h w {self.dim}"]:
        y = x.astype(jnp.float32).reshape(x.shape[0], -1, self.groups, self.dim // self.groups)
        inside = None if extent is None else extent.mask(x).reshape(*y.shape[:2], 1, 1)
        mean = partial(jnp.mean, axis=(1, 3), keepdims=True, where=inside)
        y = y - mean(y)
        y = y * jax.lax.rsqrt(mean(jnp.square(y)) + self.eps)
        return (y.reshape(x.shape) * params["scale"] + params["bias"]).astype(x.dtype)


@dataclasses.dataclass(frozen=True)
class ResnetBlock(Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1 x 1 shortcut where the width changes."""

    in_dim: int
    out_dim: int
    groups: int

    @property
    def _parts(self) -> dict[str, Module]:
        parts = {
            "norm1": GroupNorm(self.in_dim, self.groups),
            "conv1": Conv(self.in_dim, self.out_dim),
            "norm2": GroupNorm(self.out_dim, self.groups),
            "conv2": Conv(self.out_dim, self.out_dim),
        }
        if self.in_dim != self.out_dim:
            parts["conv_shortcut"] = Conv(self.in_dim, self.out_dim, size=1)
        return parts

    def specs(self) -> Specs:
        return _specs(self._parts)

    def __call__(
        self, params: Params, x: Float[Array, "B h w {self.in_dim}"], extent: Extent | None = None
    ) -> Float[Array, "B h w {self.out_dim}"]:
        parts = self._parts
        y = x
        for index in ("1", "2"):
            y = jax.nn.silu(parts["norm" + index](params["norm" + index], y, extent))
            y = parts["conv" + index](params["conv" + index], y, extent)
        if "conv_shortcut" in parts:
            x = parts["conv_shortcut"](params["conv_shortcut"], x)
        return x + y


@dataclasses.dataclass(frozen=True)
class AttentionBlock(Module):
    """x + attention(norm(x)) among all places, with a single head."""

    dim: int
    groups: int
    backend: str = "dense"

    @property
    def _parts(self) -> Parts:
        linear = Linear(self.dim, self.dim, axes=("embed", None))
        norm = GroupNorm(self.dim, self.groups)
        return {
            "group_norm": norm,
            "to_q": linear,
            "to_k": linear,
            "to_v": linear,
            "to_out": {"0": linear},
        }

    def specs(self) -> Specs:
        return _specs(self._parts)

    def __call__(
        self, params: Params, x: Float[Array, "B h w {self.dim}"], extent: Extent | None = None
    ) -> Float[Array, "B h w {self.dim}"]:
        parts = self._parts
        normed = parts["group_norm"](params["group_norm"], x, extent)
        places = normed.reshape(x.shape[0], -1, self.dim)
        seen, mask = (places, None) if extent is None else extent.gather(normed)
        sources = {"to_q": places, "to_k": seen, "to_v": seen}
        query, key, value = (
            parts[name](params[name], source)[:, :, None] for name, source in sources.items()
        )
        mixed = attention(query, key, value, mask, backend=self.backend)[:, :, 0]
        return x + parts["to_out"]["0"](params["to_out"]["0"], mixed).reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class MidBlock(Module):
    """ResNet, attention, ResNet at the lowest resolution."""

    dim: int
    groups: int
    backend: str = "dense"

    @property
    def _parts(self) -> Parts:
        resnet = ResnetBlock(self.dim, self.dim, self.groups)
        attend = AttentionBlock(self.dim, self.groups, self.backend)
        return {"resnets": _numbered([resnet, resnet]), "attentions": _numbered([attend])}

    def specs(self) -> Specs:
        return _specs(self._parts)

    def __call__(
        self, params: Params, x: Float[Array, "B h w {self.dim}"], extent: Extent | None = None
    ) -> Float[Array, "B h w {self.dim}"]:
        parts = self._parts
        for kind, index in (("resnets", "0"), ("attentions", "0"), ("resnets", "1")):
            x = parts[kind][index](params[kind][index], x, extent)
        return x


@dataclasses.dataclass(frozen=True)
class Resample(Module):
    """A convolution that halves the image or, with `up`, follows a doubling of its pixels."""

    dim: int
    up: bool

    @property
    def conv(self) -> Conv:
        return Conv(self.dim, self.dim, stride=1 if self.up else 2)

    def specs(self) -> Specs:
        return {"conv": self.conv.specs()}

    def __call__(
        self, params: Params, x: Float[Array, "B h w {self.dim}"], extent: Extent | None = None
    ) -> Float[Array, "B _h _w {self.dim}"]:
        if self.up:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return self.conv(params["conv"], x, extent)


def _blocks(start: int, widths: Sequence[int], resnets: int, groups: int, up: bool) -> Parts:
    """Blocks of `resnets` ResNets each; all but the last resample at their end."""
    blocks = {}
    for index, width in enumerate(widths):
        sizes = [start] + [width] * resnets
        pairs = itertools.pairwise(sizes)
        blocks[str(index)] = {"resnets": _numbered([ResnetBlock(*p, groups) for p in pairs])}
        if index + 1 < len(widths):
            name = "upsamplers" if up else "downsamplers"
            blocks[str(index)][name] = _numbered([Resample(width, up)])
        start = width
    return blocks


def _run_blocks(blocks: Parts, params: Params, x: jax.Array, extent: Extent | None) -> jax.Array:
    for index, block in blocks.items():
        for kind, modules in block.items():
            for number, module in modules.items():
                x = module(params[index][kind][number], x, extent)
    return x


@dataclasses.dataclass(frozen=True)
class Half(Module):
    """Encoder (`up` false) or decoder: convolution, blocks, middle, norm, SiLU, convolution.

    The middle stands at the low resolution: after the blocks on the way down, before them on the
    way up.
    """

    in_dim: int
    out_dim: int
    widths: tuple[int, ...]
    resnets: int
    groups: int
    up: bool
    backend: str = "dense"

    @property
    def _parts(self) -> Parts:
        widths, groups = self.widths, self.groups
        deep = widths[0] if self.up else widths[-1]
        return {
            "conv_in": Conv(self.in_dim, widths[0]),
            "blocks": _blocks(widths[0], widths, self.resnets, groups, self.up),
            "mid_block": MidBlock(deep, groups, self.backend),
            "conv_norm_out": GroupNorm(widths[-1], groups),
            "conv_out": Conv(widths[-1], self.out_dim),
        }

    @property
    def _blocks_name(self) -> str:
        return "up_blocks" if self.up else "down_blocks"

    def specs(self) -> Specs:
        specs = _specs(self._parts)
        return {self._blocks_name if name == "blocks" else name: s for name, s in specs.items()}

    def __call__(
        self, params: Params, x: Float[Array, "B h w {self.in_dim}"], extent: Extent | None = None
    ) -> Float[Array, "B _h _w {self.out_dim}"]:
        parts = self._parts
        x = parts["conv_in"](params["conv_in"], x, extent)
        if self.up:
            x = parts["mid_block"](params["mid_block"], x, extent)
        x = _run_blocks(parts["blocks"], params[self._blocks_name], x, extent)
        if not self.up:
            x = parts["mid_block"](params["mid_block"], x, extent)
        x = jax.nn.silu(parts["conv_norm_out"](params["conv_norm_out"], x, extent))
        return parts["conv_out"](params["conv_out"], x, extent)


@dataclasses.dataclass(frozen=True)
class AutoencoderKL(Module):
    """Images (B, h, w, 3) to latents (B, h/f, w/f, c) and back; f is `factor`.

    Attributes:
      latent_channels: c.
      widths: channels of each resolution, highest first; each is a multiple of `groups`.
      resnets: ResNets a block in the encoder; the decoder has one more.
      groups: of the group norms.
      quant_conv: whether 1 x 1 convolutions stand at both sides of the latents.
      scale, shift: normalised latents are (z - shift) * scale.
      attention_backend: "dense" or "chunked"; the kernels of "fused" take no head as wide as this
        one, of all channels.
    """

    latent_channels: int
    widths: tuple[int, ...]
    resnets: int = 2
    groups: int = 32
    quant_conv: bool = False
    scale: float = 1.0
    shift: float = 0.0
    image_channels: int = 3
    attention_backend: str = "dense"

    def __post_init__(self) -> None:
        check_backend(self.attention_backend)
        if any(width % self.groups for width in self.widths):
            raise ValueError(
                f"autoencoder widths {self.widths} are not all multiples of groups={self.groups}; "
                "change widths or groups"
            )

    @property
    def factor(self) -> int:
        return 2 ** (len(self.widths) - 1)

    @property
    def _parts(self) -> dict[str, Module]:
        image, latent, widths = self.image_channels, self.latent_channels, self.widths
        half = partial(Half, groups=self.groups, backend=self.attention_backend)
        parts = {
            "encoder": half(image, 2 * latent, widths, self.resnets, up=False),
            "decoder": half(latent, image, widths[::-1], self.resnets + 1, up=True),
        }
        if self.quant_conv:
            parts["quant_conv"] = Conv(2 * latent, 2 * latent, size=1)
            parts["post_quant_conv"] = Conv(latent, latent, size=1)
        return parts

    def specs(self) -> Specs:
        return _specs(self._parts)

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

    def encode(
        self,
        params: Params,
        images: Float[Array, "B h w 3"],
        noise: Latents | None = None,
        extent: Extent | None = None,
    ) -> Latents:
        """Normalised latents: the posterior's mean, or a draw of it with Gaussian `noise`.

        Places beyond an `extent` hold anything; a canvas may be larger than all of its pictures.
        """
        latents, log_variance = self.moments(params, images, extent)
        if noise is not None:
            latents = latents + jnp.exp(0.5 * log_variance) * noise
        return (latents - self.shift) * self.scale

    def decode(
        self,
        params: Params,
        latents: Float[Array, "B h w {self.latent_channels}"],
        extent: Extent | None = None,
    ) -> Float[Array, "B h*{self.factor} w*{self.factor} 3"]:
        """Images, about [-1, 1], of normalised latents."""
        parts = self._parts
        latents = latents / self.scale + self.shift
        if self.quant_conv:
            latents = parts["post_quant_conv"](params["post_quant_conv"], latents)
        return parts["decoder"](params["decoder"], latents, extent)

    def __call__(self, params: Params, images: Float[Array, "B h w 3"]) -> Float[Array, "B h w 3"]:
        """Reconstructs images through the posterior's mean."""
        return self.decode(params, self.encode(params, images))


def flux_autoencoder() -> AutoencoderKL:
    """The sizes of FLUX.1's autoencoder: 16 channels at an eighth of the resolution."""
    return AutoencoderKL(16, (128, 256, 512, 512), resnets=2, scale=0.3611, shift=0.1159)
