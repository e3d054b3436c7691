"""SigLIP 2's image tower (arXiv 2502.14786). All pictures of a batch have one grid of patches.

Weights are named as in transformers' `SiglipVisionModel` (fixed resolution) and
`Siglip2VisionModel` (NaFlex, whose position grid is resized to each picture's).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .modeling_unicom_layers import Attention, LayerNorm, Mlp, in_type_of

Grid = tuple[int, int]


class EncoderAttention(Attention):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1))
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.out_proj(self.mix(q, k, v))


class EncoderLayer(GradientCheckpointingLayer):
    """x += Attention(LN x); x += Mlp(LN x). Everything sees everything."""

    def __init__(self, width: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layer_norm1, self.self_attn = LayerNorm(width), EncoderAttention(width, heads)
        self.layer_norm2, self.mlp = LayerNorm(width), Mlp(width, mlp_dim, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    def __init__(self, depth: int, width: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, mlp_dim) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class PatchConv(nn.Conv2d):
    """A convolution over whole patches (B, N, P * P * 3), each flattened as (row, col, channel)."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__(3, width, kernel_size=patch, stride=patch)

    def forward(self, patches: Tensor) -> Tensor:
        kernel = self.weight.permute(0, 2, 3, 1).flatten(1).to(patches.dtype)
        return nn.functional.linear(patches, kernel, self.bias.to(patches.dtype))


class VisionEmbeddings(nn.Module):
    def __init__(self, width: int, patch: int, rows: int, cols: int, naflex: bool) -> None:
        super().__init__()
        self.grid, self.naflex = (rows, cols), naflex
        flat = 3 * patch**2
        self.patch_embedding = nn.Linear(flat, width) if naflex else PatchConv(patch, width)
        self.position_embedding = nn.Embedding(rows * cols, width)

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        rows = torch.arange(self.grid[0] * self.grid[1], device=patches.device)
        table = self.position_embedding(rows)
        if self.naflex:
            table = resize_positions(table.unflatten(0, self.grid), grid)
        elif tuple(grid) != self.grid:
            raise ValueError(
                f"this model sees pictures of {self.grid} patches only, not of {tuple(grid)}; "
                "prepare them with its image processor"
            )
        vectors = self.patch_embedding(in_type_of(self.patch_embedding, patches))
        return vectors + table.to(vectors)


class ProbeAttention(Attention):
    """Attention of one query to all tokens, with the weights of torch's `MultiheadAttention`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, probe: Tensor, features: Tensor) -> Tensor:
        """probe (B, 1, W), features (B, N, W) -> (B, 1, W)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            nn.functional.linear(x, weight, bias).unflatten(-1, (self.heads, -1))
            for x, weight, bias in zip((probe, features, features), weights, biases, strict=True)
        )
        return self.out_proj(self.mix(q, k, v))


class PoolingHead(nn.Module):
    """A learned probe attends to all tokens, then an MLP (SigLIP's MAP head)."""

    def __init__(self, width: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.probe = nn.Parameter(torch.zeros(1, 1, width))
        self.attention = ProbeAttention(width, heads)
        self.layernorm, self.mlp = LayerNorm(width), Mlp(width, mlp_dim, width)

    def forward(self, features: Tensor) -> Tensor:
        features = features.to(self.probe.dtype)
        probe = self.probe.expand(len(features), -1, -1)
        pooled = self.attention(probe, features)[:, 0]
        return pooled + self.mlp(self.layernorm(pooled))


class VisionTransformer(nn.Module):
    """Patches (B, N, P * P * 3) in [-1, 1] to features (B, N, width)."""

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        patch: int,
        rows: int,
        cols: int,
        naflex: bool,
    ) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(width, patch, rows, cols, naflex)
        self.encoder = Encoder(depth, width, heads, mlp_dim)
        self.post_layernorm = LayerNorm(width)
        self.head = PoolingHead(width, heads, mlp_dim)

    def forward(self, patches: Tensor, grid: Grid) -> Tensor:
        return self.post_layernorm(self.encoder(self.embeddings(patches, grid)))

    def pool(self, features: Tensor) -> Tensor:
        """One vector a picture: (B, N, width) -> (B, width)."""
        return self.head(features)


def resize_positions(table: Tensor, grid: Grid) -> Tensor:
    """A learned (R, C, W) grid at `grid` = (rows, columns): (rows * columns, W) fp32.

    `interpolate(mode="bilinear", antialias=True)`, written as two products: torch 2.13 on a CPU
    leaves out the vertical pass where the target is one column wide.
    """
    by_row, by_col = (
        _resize_weights(target, source, table.device)
        for target, source in zip(grid, table.shape[:2], strict=True)
    )
    return torch.einsum("ri,cj,ijw->rcw", by_row, by_col, table.float()).flatten(0, 1)


def _resize_weights(target: int, source: int, device: torch.device) -> Tensor:
    """(target, source) rows that sum to one: a triangle around each target's centre."""
    scale = source / target
    centre = (torch.arange(target, dtype=torch.float32, device=device) + 0.5) * scale
    sample = torch.arange(source, dtype=torch.float32, device=device) + 0.5
    weights = (1.0 - (sample - centre[:, None]).abs() / max(scale, 1.0)).clamp(min=0.0)
    return weights / weights.sum(dim=-1, keepdim=True)
