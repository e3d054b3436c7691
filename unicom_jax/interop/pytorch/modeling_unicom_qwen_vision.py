"""The image tower of Qwen2.5-VL (arXiv 2502.13923). Pictures of a batch have one grid of patches.

Weights are named as in transformers' `Qwen2_5_VLForConditionalGeneration`, below `visual`. Patches
stay in raster order throughout; the few layers in `whole_layers` attend to the whole picture, the
others inside square windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from .modeling_unicom_layers import (
    Attention,
    RMSNorm,
    SwiGlu,
    apply_rope,
    grid_places,
    in_type_of,
    join_windows,
    rope,
    rope_frequencies,
)

Grid = tuple[int, int]
Angles = tuple[Tensor, Tensor]
# Mean and standard deviation of each colour, as in CLIP.
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


def to_windows(x: Tensor, grid: Grid, side: int) -> Tensor:
    """(B, N, ...) of a grid in raster order -> (B * windows, side^2, ...), 0 beyond its edges."""
    down, right = (-size % side for size in grid)
    x = F.pad(x.unflatten(1, grid), (0, 0) * (x.ndim - 2) + (0, right, 0, down))
    squares = x.unflatten(2, (-1, side)).unflatten(1, (-1, side))
    return squares.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def from_windows(x: Tensor, grid: Grid, side: int) -> Tensor:
    """Inverse of `to_windows`."""
    rows, cols = (-(-size // side) for size in grid)
    squares = x.unflatten(1, (side, side)).unflatten(0, (-1, rows, cols)).transpose(2, 3)
    whole = squares.flatten(3, 4).flatten(1, 2)
    return whole[:, : grid[0], : grid[1]].flatten(1, 2)


class PatchConv(nn.Conv3d):
    """A convolution over `frames` pictures of whole patches (B, N, P * P * 3), each flattened as
    (row, column, channel). A still picture is repeated."""

    def __init__(self, width: int, patch: int, frames: int) -> None:
        size = (frames, patch, patch)
        super().__init__(3, width, kernel_size=size, stride=size, bias=False)

    def forward(self, patches: Tensor) -> Tensor:
        frames, patch, _ = self.kernel_size
        colours = patches.unflatten(-1, (patch, patch, 3)).movedim(-1, -3)
        moving = colours.unsqueeze(-3).expand(*colours.shape[:-2], frames, -1, -1)
        return F.linear(moving.flatten(-4), self.weight.flatten(1))


class PatchEmbedding(nn.Module):
    def __init__(self, width: int, patch: int, frames: int) -> None:
        super().__init__()
        self.proj = PatchConv(width, patch, frames)

    def forward(self, patches: Tensor) -> Tensor:
        return self.proj(in_type_of(self.proj, patches))


class TowerAttention(Attention):
    """Multi-head attention with rotary positions, to the whole picture or inside windows.

    `window`: patches on a side of a window; 0: the whole picture.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, angles: Angles, grid: Grid) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        q, k = apply_rope(q, *angles), apply_rope(k, *angles)
        if not self.window:
            return self.proj(self.mix(q, k, v))
        q, k, v = (to_windows(part, grid, self.window) for part in (q, k, v))
        seen = self.mix(q, k, v, self._real(x, grid))
        return self.proj(from_windows(seen, grid, self.window))

    def _real(self, x: Tensor, grid: Grid) -> Tensor | None:
        """(B * windows, side^2, side^2): which keys are patches; None: all are."""
        if all(size % self.window == 0 for size in grid):
            return None
        ones = torch.ones(*x.shape[:2], dtype=torch.bool, device=x.device)
        real = to_windows(ones, grid, self.window)
        return real[:, None].expand(-1, real.shape[1], -1)


class TowerBlock(GradientCheckpointingLayer):
    """x += Attention(RMSNorm x); x += SwiGLU(RMSNorm x), with biases."""

    def __init__(self, width: int, heads: int, mlp_dim: int, window: int) -> None:
        super().__init__()
        self.norm1, self.attn = RMSNorm(width), TowerAttention(width, heads, window)
        self.norm2, self.mlp = RMSNorm(width), SwiGlu(width, mlp_dim, bias=True)

    def forward(self, x: Tensor, angles: Angles, grid: Grid) -> Tensor:
        x = x + self.attn(self.norm1(x), angles, grid)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """merge x merge patches side by side to a vector for the language model."""

    def __init__(self, width: int, out_dim: int, merge: int) -> None:
        super().__init__()
        joined = merge**2 * width
        self.merge, self.ln_q = merge, RMSNorm(width)
        self.mlp = nn.Sequential(nn.Linear(joined, joined), nn.GELU(), nn.Linear(joined, out_dim))

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return self.mlp(join_windows(self.ln_q(x), grid, self.merge))


class QwenVision(nn.Module):
    """Patches of still pictures to a vector for each square of merge x merge patches.

    Args:
      patch_size, window_size: pixels on a side of a patch and of a window.
      whole_layers: the numbers of the layers that attend to the whole picture.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        out_dim: int,
        patch_size: int,
        frames: int,
        merge: int,
        window_size: int,
        whole_layers: Sequence[int],
    ) -> None:
        super().__init__()
        self.patch, self.head_dim = patch_size, width // heads
        self.patch_embed = PatchEmbedding(width, patch_size, frames)
        side = window_size // patch_size
        self.blocks = nn.ModuleList(
            TowerBlock(width, heads, mlp_dim, 0 if layer in whole_layers else side)
            for layer in range(depth)
        )
        self.merger = Merger(width, out_dim, merge)

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        """(B, N / merge^2, out_dim) of patches (B, N, P * P * 3) in 0..255, in raster order."""
        mean, deviation = (torch.tensor(one, device=patches.device) for one in (MEAN, DEVIATION))
        colours = (patches.float().unflatten(-1, (-1, 3)) / 255.0 - mean) / deviation
        x = self.patch_embed(colours.flatten(-2))
        half = rope_frequencies(self.head_dim // 2, 10_000.0)[0]
        places = grid_places(*grid, device=x.device)[None]
        angles = rope(places, torch.cat([half, half]), (len(half), len(half)))
        for block in self.blocks:
            x = block(x, angles, grid)
        return self.merger(x, grid)
