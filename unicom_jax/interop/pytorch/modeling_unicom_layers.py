"""The small layers of all parts. They compute in the type of their input; norms in fp32."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Linear(nn.Linear):
    """y = x W^T + b in the type of x, whatever type the weights are kept in."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / std * weight + bias, computed in fp32."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class RMSNorm(nn.Module):
    """x / rms(x) * weight, computed in fp32."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight.float()).to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS = {"gelu_tanh": gelu_tanh, "silu": F.silu}


class Mlp(nn.Module):
    """Linear -> activation -> Linear."""

    def __init__(self, width: int, hidden: int, out: int, activation: str = "gelu_tanh") -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, out)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)) without biases (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, hidden, bias=False)
        self.up_proj = Linear(width, hidden, bias=False)
        self.down_proj = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class TimeEmbedding(Mlp):
    """Flow time (...) -> (..., width) fp32: 256 sinusoids, then a two-layer SiLU MLP."""

    FREQUENCIES = 256

    def __init__(self, width: int) -> None:
        super().__init__(self.FREQUENCIES, width, width, activation="silu")

    def forward(self, time: Tensor) -> Tensor:
        half = self.FREQUENCIES // 2
        index = torch.arange(half, dtype=torch.float32, device="cpu")
        exponents = torch.tensor(-math.log(10_000.0), device="cpu") * index / half
        frequencies = exponents.double().exp().float().to(time.device)
        angles = 1000.0 * time.float()[..., None] * frequencies
        return super().forward(torch.cat([angles.cos(), angles.sin()], dim=-1))


class Modulation(Linear):
    """`parts` vectors of `width` from a condition: SiLU, then Linear (DiT: Peebles & Xie 2023)."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(width, parts * width)
        self.parts = parts

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return super().forward(F.silu(condition)).chunk(self.parts, dim=-1)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift, without weights of its own, in the type of x."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype)
    return normed * (1 + scale.to(x.dtype)) + shift.to(x.dtype)


def place_embedding(places: Tensor, width: int) -> Tensor:
    """Fixed waves of (row, column): (..., 2) -> (..., width) fp32; half the channels tell each."""
    index = torch.arange(width // 4, dtype=torch.float32, device=places.device)
    frequencies = torch.pow(10_000.0, -index / (width // 4))
    angles = places.float()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def grid_places(rows: int, cols: int, device: torch.device | None = None) -> Tensor:
    """(rows * cols, 2) row and column of the tokens of an image in raster order."""
    index = torch.arange(rows * cols, device=device)
    return torch.stack([index // cols, index % cols], dim=-1)


def rope_frequencies(
    head_dim: int, theta: float, scaling: str = "none", factor: float = 1.0, length: int = 0
) -> tuple[Tensor, float]:
    """Angles per position (head_dim / 2,) fp32 on the CPU, and what cos and sin are multiplied by.

    Frequency i is theta ** (-2 i / head_dim). scaling "linear" divides all of them by `factor`,
    "yarn" the low ones only (Peng et al. 2023), for a model trained with texts of `length` tokens.
    """
    index = torch.arange(head_dim // 2, dtype=torch.float64, device="cpu")
    plain = theta ** (-2.0 * index / head_dim)
    if scaling != "yarn":
        return (plain / factor).float(), 1.0

    def pair_with(turns: float) -> float:
        return head_dim * math.log(length / (2 * math.pi * turns)) / (2 * math.log(theta))

    first = max(math.floor(pair_with(32)), 0)
    last = min(math.ceil(pair_with(1)), head_dim - 1)
    slowed = ((index - first) / ((last - first) or 1e-3)).clamp(0.0, 1.0)
    frequencies = plain * (1.0 - slowed) + plain / factor * slowed
    return frequencies.float(), 0.1 * math.log(factor) + 1.0


def rope(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (..., head_dim / 2) fp32, of positions (..., 2) = (y, x).

    Even frequencies turn with y and odd ones with x: RoPE (Su et al. 2021) where y = x.
    """
    frequencies = frequencies.to(positions.device)
    turns_with_x = (torch.arange(len(frequencies), device=positions.device) % 2).bool()
    y, x = positions[..., :1].float(), positions[..., 1:].float()
    angles = torch.where(turns_with_x, x, y) * frequencies
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns channel pairs (i, i + D / 2) of x (..., S, H, D) by angles (..., S, D / 2)."""
    cos, sin = cos[..., None, :], sin[..., None, :]
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys that `mask` shows.

    Args:
      q: (B, S, H, D); k, v: (B, T, K, D), each key head serves H / K query heads in a row.
      mask: (B, S, T) bool, true where a query sees a key. A query that sees nothing gives 0.

    Returns:
      (B, S, H * D).
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    blind = None
    if mask is not None:
        blind = ~mask.any(dim=-1)
        mask = (mask | blind[..., None])[:, None]  # a row of -inf only would be NaN
    mixed = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, enable_gqa=q.shape[1] != k.shape[1]
    ).transpose(1, 2)
    if blind is not None:
        mixed = mixed.masked_fill(blind[..., None, None], 0)
    return mixed.flatten(-2)
