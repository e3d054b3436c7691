"""The small layers of all parts. They compute in the type of their input; norms in fp32.

Linear layers are torch's own, so that quantising libraries find and replace them. Where a part is
kept in another type than what comes in, `in_type_of` casts at its entry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig


def in_type_of(layer: nn.Module, x: Tensor) -> Tensor:
    """x in the type that `layer` computes in; as it is where the weights are quantised."""
    dtype = layer.weight.dtype
    return x.to(dtype) if dtype.is_floating_point and dtype.itemsize > 1 else x


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


ACTIVATIONS = {"gelu": F.gelu, "gelu_tanh": gelu_tanh, "silu": F.silu}


class Mlp(nn.Module):
    """Linear -> activation -> Linear."""

    def __init__(self, width: int, hidden: int, out: int, activation: str = "gelu_tanh") -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, out)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)), usually without biases (Shazeer 2020)."""

    def __init__(self, width: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=bias)
        self.up_proj = nn.Linear(width, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class TimeEmbedding(Mlp):
    """Flow time (...) -> (..., width): 256 sinusoids of time * scale in fp32, then a SiLU MLP."""

    FREQUENCIES = 256

    def __init__(self, width: int, scale: float = 1000.0) -> None:
        super().__init__(self.FREQUENCIES, width, width, activation="silu")
        self.scale = scale

    def forward(self, time: Tensor) -> Tensor:
        half = self.FREQUENCIES // 2
        index = torch.arange(half, dtype=torch.float32, device="cpu")
        exponents = torch.tensor(-math.log(10_000.0), device="cpu") * index / half
        frequencies = exponents.double().exp().float().to(time.device)
        angles = self.scale * time.float()[..., None] * frequencies
        return super().forward(in_type_of(self.fc1, torch.cat([angles.cos(), angles.sin()], -1)))


def modulation(layer: nn.Linear, condition: Tensor, parts: int) -> tuple[Tensor, ...]:
    """`parts` vectors from a condition: SiLU, then `layer` (DiT: Peebles & Xie 2023)."""
    return layer(in_type_of(layer, F.silu(condition))).chunk(parts, dim=-1)


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift, without weights of its own, in the type of x."""
    normed = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6).to(x.dtype)
    return normed * (1 + scale.to(x.dtype)) + shift.to(x.dtype)


def place_embedding(places: Tensor, width: int) -> Tensor:
    """Fixed sines and cosines of (row, column): (..., 2) -> (..., width) fp32, half for each."""
    index = torch.arange(width // 4, dtype=torch.float32, device=places.device)
    frequencies = torch.pow(10_000.0, -index / (width // 4))
    angles = places.float()[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def join_windows(x: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """(B, N, C) -> (B, N / side^2, side^2 C): the tokens of each window as (row, column, C)."""
    squares = x.unflatten(1, (grid[0] // side, side, grid[1] // side, side))
    return squares.transpose(2, 3).flatten(3).flatten(1, 2)


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


def rope(
    positions: Tensor, frequencies: Tensor, sections: Sequence[int] = ()
) -> tuple[Tensor, Tensor]:
    """(cos, sin), each (..., head_dim / 2) fp32, of positions (..., coordinates).

    Without `sections` these are (y, x): even frequencies turn with y and odd ones with x, which is
    RoPE (Su et al. 2021) where y = x. Otherwise each coordinate turns so many successive
    frequencies (M-RoPE: Wang et al. 2024).
    """
    frequencies, positions = frequencies.to(positions.device), positions.float()
    if sections:
        parts = zip(positions.split(1, dim=-1), frequencies.split(list(sections)), strict=True)
        angles = torch.cat([place * part for place, part in parts], dim=-1)
    else:
        turns_with_x = (torch.arange(len(frequencies), device=positions.device) % 2).bool()
        angles = torch.where(turns_with_x, positions[..., 1:], positions[..., :1]) * frequencies
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns channel pairs (i, i + D / 2) of x (..., S, H, D) by angles (..., S, D / 2)."""
    cos, sin = cos[..., None, :], sin[..., None, :]
    first, second = x.float().chunk(2, dim=-1)
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
    return turned.to(x.dtype)


class Attention(nn.Module):
    """What all attention layers share: how softmax(q k^T / sqrt(D)) v is computed.

    `config`: the model's, whose `attn_implementation` is "sdpa" or "eager"; None: "sdpa".
    """

    config: PretrainedConfig | None = None

    def mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The mean of v over the keys that `mask` shows.

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
        if self.config is not None and self.config._attn_implementation == "eager":
            mixed = _eager(q, k, v, mask)
        else:
            grouped = q.shape[1] != k.shape[1]
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=grouped)
        mixed = mixed.transpose(1, 2)
        if blind is not None:
            mixed = mixed.masked_fill(blind[..., None, None], 0)
        return mixed.flatten(-2)


def _eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of (B, H, S, D) written out, its softmax in fp32."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.float().softmax(dim=-1).to(v.dtype) @ v
