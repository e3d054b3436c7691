"""Layers of the convolutional KL autoencoder of latent diffusion and FLUX, channels last.

Architecture and weight names are those of diffusers (Rombach et al. 2022): residual blocks with
GroupNorm and SiLU, one attention block in the middle, 3 x 3 convolutions that halve the image's
sides or double them again.

Pictures of several shapes share a batch, each in the upper left corner of a canvas of one size. An
`Extent` says how far each picture reaches. Every layer treats the rest of the canvas as if it were
beyond the image's edge, so a picture's latents do not depend on its canvas.
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
from unicom_jax.core.attention import attention
from unicom_jax.core.layers import Linear
from unicom_jax.core.module import Module, Params, ParamSpec, Specs, ones, zeros
from unicom_jax.core.precision import precision_of
from unicom_jax.models.extent import Extent

Parts = Mapping[str, Any]  # nested dict of modules, structured like the weights


def specs_of(parts: Parts) -> Specs:
    return {
        name: part.specs() if isinstance(part, Module) else specs_of(part)
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
        if extent is not None:  # zeros beyond the edge, like the padding of the convolution
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
        inside = None if extent is None else extent.mask(x)
        y = x.astype(jnp.float32)
        y = y - self._mean(y, inside)
        y = y * jax.lax.rsqrt(self._mean(jnp.square(y), inside) + self.eps)
        return (y * params["scale"] + params["bias"]).astype(x.dtype)

    def _mean(self, y: jax.Array, inside: jax.Array | None) -> Float[Array, "B 1 1 {self.dim}"]:
        """Of each group, at all of its channels: over places first, which is the faster order."""
        by_channel = jnp.mean(y, axis=(1, 2), where=inside)
        groups = by_channel.reshape(-1, self.groups, self.dim // self.groups)
        means = jnp.mean(groups, axis=-1, keepdims=True)
        return jnp.broadcast_to(means, groups.shape).reshape(-1, 1, 1, self.dim)


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
        return specs_of(self._parts)

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
    """x + attention(norm(x)) over all places, with a single head."""

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
        return specs_of(self._parts)

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
        return specs_of(self._parts)

    def __call__(
        self, params: Params, x: Float[Array, "B h w {self.dim}"], extent: Extent | None = None
    ) -> Float[Array, "B h w {self.dim}"]:
        parts = self._parts
        for kind, index in (("resnets", "0"), ("attentions", "0"), ("resnets", "1")):
            x = parts[kind][index](params[kind][index], x, extent)
        return x


@dataclasses.dataclass(frozen=True)
class Resample(Module):
    """A convolution that halves the image's sides or, with `up`, follows their doubling."""

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
    """Blocks of `resnets` ResNets each; all but the last end with a resampling."""
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


def _run_blocks(
    blocks: Parts, params: Params, x: jax.Array, extent: Extent | None, remat: bool
) -> jax.Array:
    for index, block in blocks.items():
        for kind, modules in block.items():
            for number, module in modules.items():
                run = partial(module, extent=extent)
                run = jax.checkpoint(run) if remat else run
                x = run(params[index][kind][number], x)
    return x


@dataclasses.dataclass(frozen=True)
class Half(Module):
    """Encoder (`up` false) or decoder: convolution, blocks, middle, norm, SiLU, convolution.

    The middle works at the lowest resolution: it follows the blocks of the encoder and precedes
    those of the decoder. With `remat` the backward pass recomputes each layer of the blocks.
    """

    in_dim: int
    out_dim: int
    widths: tuple[int, ...]
    resnets: int
    groups: int
    up: bool
    backend: str = "dense"
    remat: bool = False

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
        specs = specs_of(self._parts)
        return {self._blocks_name if name == "blocks" else name: s for name, s in specs.items()}

    def __call__(
        self, params: Params, x: Float[Array, "B h w {self.in_dim}"], extent: Extent | None = None
    ) -> Float[Array, "B _h _w {self.out_dim}"]:
        return self.output(params["conv_out"], self.features(params, x, extent), extent)

    def output(
        self, params: Params, features: Float[Array, "B h w c"], extent: Extent | None = None
    ) -> Float[Array, "B h w {self.out_dim}"]:
        """The last convolution. `params`: its weights alone."""
        return self._parts["conv_out"](params, features, extent)

    def features(
        self, params: Params, x: Float[Array, "B h w {self.in_dim}"], extent: Extent | None = None
    ) -> Float[Array, "B _h _w {self.widths[-1]}"]:
        """Everything before `output`."""
        parts = self._parts
        x = parts["conv_in"](params["conv_in"], x, extent)
        if self.up:
            x = parts["mid_block"](params["mid_block"], x, extent)
        x = _run_blocks(parts["blocks"], params[self._blocks_name], x, extent, self.remat)
        if not self.up:
            x = parts["mid_block"](params["mid_block"], x, extent)
        return jax.nn.silu(parts["conv_norm_out"](params["conv_norm_out"], x, extent))
