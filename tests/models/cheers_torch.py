"""Cheers in plain torch, written from the paper's formulas and not from our code.

Parts are for one square picture a row, without padding. Modules and weights have the names of our
trees, so that weights go in and gradients come out by one rule (`load`, `gradients`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from flax import traverse_util
from torch import Tensor, nn

from unicom_jax.core.module import Params

LAYERS = "blocks"  # our trees stack their weights, torch has one module each


# ---- weights in, gradients out -----------------------------------------------------------------


def _name(path: str) -> str:
    return path.replace("/kernel", "/weight").replace("/scale", "/weight").replace("/", ".")


def _theirs(path: str, value: np.ndarray) -> np.ndarray:
    if not path.endswith("kernel"):
        return value
    return value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)


def _ours(path: str, value: np.ndarray) -> np.ndarray:
    if not path.endswith("kernel"):
        return value
    return value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)


def _places(path: str, count: int) -> list[str]:
    """Torch's names of a leaf: one, or one a layer where our tree stacks layers."""
    before, layers, after = f"/{path}".partition(f"/{LAYERS}/")
    if not layers:
        return [_name(path)]
    return [_name(f"{before}/{LAYERS}/{i}/{after}"[1:]) for i in range(count)]


def load(model: nn.Module, params: Params) -> nn.Module:
    """The model with our weights; each of its own has to be there."""
    state = {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        value = np.asarray(leaf)
        names = _places(path, len(value) if value.ndim else 0)
        stacked = f"/{LAYERS}/" in f"/{path}"
        for i, name in enumerate(names):
            layer = np.ascontiguousarray(_theirs(path, value[i] if stacked else value))
            state[name] = torch.from_numpy(layer.copy())
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    model.load_state_dict({name: state[name] for name in own})
    return model


def gradients(model: nn.Module, params: Params) -> dict[str, np.ndarray]:
    """{our path: gradient} of the leaves of `params` that the model has."""
    grads = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    found = {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        names = _places(path, len(leaf) if leaf.ndim else 0)
        if all(name in grads for name in names):
            layers = [_ours(path, grads[name]) for name in names]
            found[path] = np.stack(layers) if f"/{LAYERS}/" in f"/{path}" else layers[0]
    return found


# ---- the flow head -----------------------------------------------------------------------------


class Time(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(256, width), nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(128) / 128)
        return self.down(F.silu(self.up(torch.cat([angles.cos(), angles.sin()], -1))))


def rotate(x: Tensor, places: Tensor) -> Tensor:
    """(B, H, N, D): channel i and i + D/2 as a complex number, turned by place · 10000^(-2i/D)."""
    half = x.shape[-1] // 2
    speeds = 10_000.0 ** (-torch.arange(half) / half)
    turns = torch.polar(torch.ones(len(places), half), places[:, None] * speeds)
    turned = torch.complex(x[..., :half], x[..., half:]) * turns
    return torch.cat([turned.real, turned.imag], -1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, width // heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, groups * self.size, bias=False)
        self.value = nn.Linear(width, groups * self.size, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        rows, count, width = x.shape
        q = self.query(x).view(rows, count, self.heads, -1).transpose(1, 2)
        k = self.key(x).view(rows, count, self.groups, -1).transpose(1, 2)
        v = self.value(x).view(rows, count, self.groups, -1).transpose(1, 2)
        q, k = rotate(q, places), rotate(k, places)
        k, v = (y.repeat_interleave(self.heads // self.groups, dim=1) for y in (k, v))
        scores = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(self.size), -1)
        return self.out((scores @ v).transpose(1, 2).reshape(rows, count, width))


class SwiGlu(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, 4 * width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, groups: int) -> None:
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = Attention(width, heads, groups)
        self.mlp_norm = nn.RMSNorm(width, eps=1e-6)
        self.mlp = SwiGlu(width)

    def forward(self, x: Tensor, time: Tensor, places: Tensor) -> Tensor:
        steering = self.modulation(F.silu(time))[:, None].chunk(6, dim=-1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = steering
        y = self.attention_norm(x) * (1 + scale_a) + shift_a
        x = x + gate_a * self.attention(y, places)
        y = self.mlp_norm(x) * (1 + scale_m) + shift_m
        return x + gate_m * self.mlp(y)


class Stack(nn.Module):
    def __init__(self, width: int, out: int, depth: int, heads: int, groups: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width, heads, groups) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, out)

    def forward(self, x: Tensor, time: Tensor, places: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, time, places)
        shift, scale = self.modulation(F.silu(time))[:, None].chunk(2, dim=-1)
        return self.output(self.norm(x) * (1 + scale) + shift)


class Gate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


def shuffle(x: Tensor, fold: int) -> Tensor:
    """(B, s, fold² c) of a square of slots -> (B, s fold², c); channels are (row, column, c)."""
    rows, slots, channels = x.shape
    side = math.isqrt(slots)
    x = x.view(rows, side, side, fold, fold, channels // fold**2).permute(0, 1, 3, 2, 4, 5)
    return x.reshape(rows, slots * fold**2, -1)


class Head(nn.Module):
    """`sizes`: of both stages, as for `Stack`."""

    def __init__(
        self, semantics: tuple, details: tuple, fold=2, gate=True, norm=True, halves=False
    ) -> None:
        super().__init__()
        self.fold, self.halves = fold, halves
        self.semantics, self.details = Stack(*semantics), Stack(*details)
        self.semantics_time, self.details_time = Time(semantics[0]), Time(details[0])
        self.gate = Gate(details[0]) if gate else None
        self.norm = nn.LayerNorm(details[0]) if norm else None

    def forward(self, hidden: Tensor, t: Tensor, e: Tensor) -> Tensor:
        order = torch.arange(hidden.shape[1]).float()
        z = shuffle(self.semantics(hidden, self.semantics_time(t), order), self.fold)
        y = z if self.gate is None else z + self.gate(z) * e
        y = y if self.norm is None else self.norm(y)
        order = torch.arange(y.shape[1])
        if self.halves:
            order = torch.cat([order[: len(order) // 2]] * 2)
        return self.details(y, self.details_time(t), order.float())


# ---- the tokenizer -----------------------------------------------------------------------------


class Projector(nn.Module):
    def __init__(self, width: int, out: int, fold: int = 2) -> None:
        super().__init__()
        self.fold, joined = fold, fold**2 * width
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"up": nn.Linear(joined, joined), "down": nn.Linear(joined, out)})

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        side = math.isqrt(tokens) // self.fold
        x = self.norm(x).view(rows, side, self.fold, side, self.fold, width)
        x = x.permute(0, 1, 3, 2, 4, 5).reshape(rows, side**2, -1)
        return self.mlp["down"](F.gelu(self.mlp["up"](x)))


class VisionBlock(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        names = ("query", "key", "value", "out")
        self.attention = nn.ModuleDict({name: nn.Linear(width, width) for name in names})
        self.mlp_norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict({"up": nn.Linear(width, hidden), "down": nn.Linear(hidden, width)})

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention_norm(x)
        q, k, v = (
            self.attention[name](y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.attention["out"](mixed)
        y = F.gelu(self.mlp["up"](self.mlp_norm(x)), approximate="tanh")
        return x + self.mlp["down"](y)


class Vision(nn.Module):
    """SigLIP's image tower of pictures (B, 3, h, w), without its pooling."""

    def __init__(self, patch: int, width: int, depth: int, heads: int, hidden: int, side: int):
        super().__init__()
        self.patch = patch
        self.embedding = nn.Linear(3 * patch**2, width)
        self.positions = nn.Parameter(torch.zeros(side, side, width))
        self.blocks = nn.ModuleList(VisionBlock(width, heads, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        weight = self.embedding.weight.unflatten(1, (self.patch, self.patch, 3))
        kernel = weight.permute(0, 3, 1, 2)
        embedded = F.conv2d(pictures, kernel, self.embedding.bias, stride=self.patch)
        embedded = embedded.flatten(2).transpose(1, 2) + self.positions.flatten(0, 1)
        x = embedded
        for block in self.blocks:
            x = block(x)
        return embedded, self.norm(x)


class Resnet(nn.Module):
    def __init__(self, before: int, after: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, eps=1e-6)
        self.conv1 = nn.Conv2d(before, after, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, after, eps=1e-6)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1)
        if before != after:
            self.conv_shortcut = nn.Conv2d(before, after, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x)


class MiddleAttention(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.group_norm(x).flatten(2).transpose(1, 2)
        scores = self.to_q(y) @ self.to_k(y).transpose(1, 2) / math.sqrt(y.shape[-1])
        y = self.to_out[0](torch.softmax(scores, -1) @ self.to_v(y))
        return x + y.transpose(1, 2).unflatten(2, x.shape[2:])


class Decoder(nn.Module):
    """FLUX.2's decoder of packed normalised latents (B, n, 4 c) of a square; `widths` from below.

    `statistics` of the packed channels (c, row, column); eps 1e-4, always as they are stored.
    """

    def __init__(self, channels: int, widths: tuple[int, ...], resnets: int, groups: int) -> None:
        super().__init__()
        deep = widths[0]
        self.statistics = nn.Module()
        self.statistics.register_buffer("mean", torch.zeros(4 * channels))
        self.statistics.register_buffer("variance", torch.ones(4 * channels))
        self.post_quant_conv = nn.Conv2d(channels, channels, 1)
        inner = {
            "conv_in": nn.Conv2d(channels, deep, 3, padding=1),
            "mid_block": nn.ModuleDict(
                {
                    "resnets": nn.ModuleList(Resnet(deep, deep, groups) for _ in range(2)),
                    "attentions": nn.ModuleList([MiddleAttention(deep, groups)]),
                }
            ),
            "up_blocks": nn.ModuleList(),
            "conv_norm_out": nn.GroupNorm(groups, widths[-1], eps=1e-6),
            "conv_out": nn.Conv2d(widths[-1], 3, 3, padding=1),
        }
        for index, width in enumerate(widths):
            starts = [widths[max(index - 1, 0)]] + [width] * (resnets - 1)
            parts = {
                "resnets": nn.ModuleList(Resnet(start, width, groups) for start in starts),
            }
            if index + 1 < len(widths):
                conv = nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, padding=1)})
                parts["upsamplers"] = nn.ModuleList([conv])
            inner["up_blocks"].append(nn.ModuleDict(parts))
        self.decoder = nn.ModuleDict(inner)

    def forward(self, packed: Tensor) -> Tensor:
        rows, tokens, channels = packed.shape
        side = math.isqrt(tokens)
        z = packed * torch.sqrt(self.statistics.variance + 1e-4) + self.statistics.mean
        z = z.view(rows, side, side, channels // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
        x = self.post_quant_conv(z.reshape(rows, channels // 4, 2 * side, 2 * side))
        parts = self.decoder
        x = parts["conv_in"](x)
        before, after = parts["mid_block"]["resnets"]
        x = after(parts["mid_block"]["attentions"][0](before(x)))
        for block in parts["up_blocks"]:
            for resnet in block["resnets"]:
                x = resnet(x)
            if "upsamplers" in block:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
                x = block["upsamplers"][0]["conv"](x)
        return parts["conv_out"](F.silu(parts["conv_norm_out"](x)))


class Encoder(nn.Module):
    """FLUX.2's encoder of pictures (B, 3, h, w): packed, normalised means (B, n, 4 c)."""

    def __init__(self, channels: int, widths: tuple[int, ...], resnets: int, groups: int) -> None:
        super().__init__()
        deep = widths[-1]
        self.statistics = nn.Module()
        self.statistics.register_buffer("mean", torch.zeros(4 * channels))
        self.statistics.register_buffer("variance", torch.ones(4 * channels))
        self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        inner = {
            "conv_in": nn.Conv2d(3, widths[0], 3, padding=1),
            "down_blocks": nn.ModuleList(),
            "mid_block": nn.ModuleDict(
                {
                    "resnets": nn.ModuleList(Resnet(deep, deep, groups) for _ in range(2)),
                    "attentions": nn.ModuleList([MiddleAttention(deep, groups)]),
                }
            ),
            "conv_norm_out": nn.GroupNorm(groups, deep, eps=1e-6),
            "conv_out": nn.Conv2d(deep, 2 * channels, 3, padding=1),
        }
        for index, width in enumerate(widths):
            starts = [widths[max(index - 1, 0)]] + [width] * (resnets - 1)
            parts = {"resnets": nn.ModuleList(Resnet(start, width, groups) for start in starts)}
            if index + 1 < len(widths):
                conv = nn.ModuleDict({"conv": nn.Conv2d(width, width, 3, stride=2)})
                parts["downsamplers"] = nn.ModuleList([conv])
            inner["down_blocks"].append(nn.ModuleDict(parts))
        self.encoder = nn.ModuleDict(inner)

    def forward(self, pictures: Tensor) -> Tensor:
        parts = self.encoder
        x = parts["conv_in"](pictures)
        for block in parts["down_blocks"]:
            for resnet in block["resnets"]:
                x = resnet(x)
            if "downsamplers" in block:
                x = block["downsamplers"][0]["conv"](F.pad(x, (0, 1, 0, 1)))
        before, after = parts["mid_block"]["resnets"]
        x = after(parts["mid_block"]["attentions"][0](before(x)))
        x = self.quant_conv(parts["conv_out"](F.silu(parts["conv_norm_out"](x))))
        z, _ = x.chunk(2, dim=1)
        rows, channels, side, _ = z.shape
        z = z.view(rows, channels, side // 2, 2, side // 2, 2).permute(0, 2, 4, 1, 3, 5)
        z = z.reshape(rows, (side // 2) ** 2, 4 * channels)
        return (z - self.statistics.mean) / torch.sqrt(self.statistics.variance + 1e-4)


class Images(nn.Module):
    """The whole image side but for the transformer, for which `between` stands: z_t, t -> v."""

    def __init__(self, decoder: Decoder, vision: Vision, projector: Projector, head: Head) -> None:
        super().__init__()
        self.decoder, self.vision, self.projector, self.head = decoder, vision, projector, head

    def forward(self, noisy: Tensor, t: Tensor, between: Tensor) -> Tensor:
        embedded, features = self.vision(self.decoder(noisy))
        hidden = torch.tanh(self.projector(features) @ between)
        return self.head(hidden, t, embedded)
