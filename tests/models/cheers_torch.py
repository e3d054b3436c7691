"""Cheers' image side in plain torch, written from the paper's formulas and not from our code.

Parts are for one square picture a row, without padding. Weights have the names of our trees
(`tests.models.own_names`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.cheers_head_torch import Head


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
