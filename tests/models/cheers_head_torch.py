"""Cheers' flow head in plain torch, written from the paper's formulas and not from our code.

For one square picture a row, without padding. Weights have the names of our trees
(`tests.models.own_names`).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
