"""The codec: features to latents and back, and the diffusion transformer that paints from them.

All of it is kept and computed in fp32. All pictures of a batch have one grid of patches.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from .modeling_unicom_flow import data_to_velocity
from .modeling_unicom_layers import (
    Attention,
    LayerNorm,
    Mlp,
    RMSNorm,
    SwiGlu,
    TimeEmbedding,
    apply_rope,
    gelu_tanh,
    grid_places,
    in_type_of,
    modulated_norm,
    modulation,
    rope,
    rope_frequencies,
)

Grid = tuple[int, int]


# ---- compressors ------------------------------------------------------------------------------


class LatentStatistics(nn.Module):
    """Mean and deviation of raw latents; normalised ones have mean 0 and deviation 1."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(latent_dim))
        self.register_buffer("std", torch.ones(latent_dim))

    def forward(self, latents: Tensor, restore: bool = False) -> Tensor:
        """Raw latents normalised, or normalised ones made raw; fp32."""
        mean, std = self.mean.float(), self.std.float()
        return latents.float() * std + mean if restore else (latents.float() - mean) / std


class ProjectionAttention(Attention):
    """UniTok's attention: down (in > out) averages heads of width in / heads, up joins them."""

    def __init__(self, in_dim: int, out_dim: int, heads: int) -> None:
        super().__init__()
        inner = max(in_dim, out_dim)
        self.heads, self.down = heads, in_dim > out_dim
        self.qkv = nn.Linear(in_dim, 3 * inner, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(inner))
        self.v_bias = nn.Parameter(torch.zeros(inner))
        self.register_buffer("zero_k_bias", torch.zeros(inner))
        self.proj = nn.Linear(inner // heads if self.down else out_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        biases = (self.q_bias, self.zero_k_bias, self.v_bias)
        q, k, v = (
            (part + bias.to(x.dtype)).unflatten(-1, (self.heads, -1))
            for part, bias in zip(self.qkv(x).chunk(3, dim=-1), biases, strict=True)
        )
        mixed = self.mix(q, k, v)
        return self.proj(mixed.unflatten(-1, (self.heads, -1)).mean(-2) if self.down else mixed)


class GeGlu(nn.Module):
    """LayerNorm, then w2(gelu(w0 x) * w1 x)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = LayerNorm(width)
        self.w0, self.w1 = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.w2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        return self.w2(gelu_tanh(self.w0(x)) * self.w1(x))


class AttentionProjection(nn.Module):
    """y = Linear(LN3 x) + Attention(LN1 x); y += GeGLU(LN2 y) (UniTok: Ma et al. 2025)."""

    def __init__(self, in_dim: int, out_dim: int, heads: int) -> None:
        super().__init__()
        norm = functools.partial(LayerNorm, eps=1e-5)
        self.norm1, self.attn = norm(in_dim), ProjectionAttention(in_dim, out_dim, heads)
        self.norm3, self.proj = norm(in_dim), nn.Linear(in_dim, out_dim)
        self.norm2, self.mlp = norm(out_dim), GeGlu(out_dim, 2 * out_dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        x = in_type_of(self.proj, x)
        y = self.proj(self.norm3(x)) + self.attn(self.norm1(x))
        return y + self.mlp(self.norm2(y))


class MlpProjection(Mlp):
    """Linear -> GELU -> Linear on each token."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(in_dim, max(in_dim, out_dim), out_dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return super().forward(in_type_of(self.fc1, x))


class PoolProjection(nn.Module):
    """Joins the tokens of each window x window square in raster order, then a Linear."""

    def __init__(self, in_dim: int, out_dim: int, window: int) -> None:
        super().__init__()
        self.window, self.proj = window, nn.Linear(window**2 * in_dim, out_dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        rows, cols = (size // self.window for size in grid)
        squares = x.unflatten(1, (rows, self.window, cols, self.window)).transpose(2, 3)
        return self.proj(in_type_of(self.proj, squares.flatten(3).flatten(1, 2)))


class UnpoolProjection(nn.Module):
    """The inverse layout: each latent becomes the tokens of its window."""

    def __init__(self, in_dim: int, out_dim: int, window: int) -> None:
        super().__init__()
        self.window, self.proj = window, nn.Linear(in_dim, window**2 * out_dim)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        rows, cols = (size // self.window for size in grid)
        squares = self.proj(in_type_of(self.proj, x)).unflatten(-1, (self.window, self.window, -1))
        squares = squares.unflatten(1, (rows, cols)).transpose(2, 3)
        return squares.flatten(1, 4)


class IdentityProjection(nn.Module):
    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        return x


def make_projections(
    compressor: str, feature_dim: int, latent_dim: int, heads: int, window: int
) -> tuple[nn.Module, nn.Module]:
    """(compressor, decompressor), each (x (B, N, in), grid of the features) -> (B, n, out)."""
    down, up = (feature_dim, latent_dim), (latent_dim, feature_dim)
    if compressor == "attention":
        return AttentionProjection(*down, heads), AttentionProjection(*up, heads)
    if compressor == "mlp":
        return MlpProjection(*down), MlpProjection(*up)
    if compressor == "pool":
        return PoolProjection(*down, window), UnpoolProjection(*up, window)
    if compressor == "identity":
        return IdentityProjection(), IdentityProjection()
    raise ValueError(f"codec.compressor {compressor!r} is unknown to this version of the model")


# ---- the diffusion transformer ----------------------------------------------------------------


class DiffusionBlock(Attention):
    """Attention over the image and a SwiGLU MLP, each shifted, scaled and gated by time."""

    def __init__(self, width: int, heads: int, mlp_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv, self.output = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.query_norm, self.key_norm = RMSNorm(width // heads), RMSNorm(width // heads)
        self.mlp = SwiGlu(width, mlp_dim)

    def attend(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        # Heads come before (query, key, value) in the rows of the weight.
        q, k, v = self.qkv(x).unflatten(-1, (self.heads, -1)).chunk(3, dim=-1)
        q, k = apply_rope(self.query_norm(q), *angles), apply_rope(self.key_norm(k), *angles)
        return self.output(self.mix(q, k, v))

    def forward(self, x: Tensor, time: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        steering = (part.to(x.dtype) for part in modulation(self.modulation, time, 6))
        scale1, shift1, gate1, scale2, shift2, gate2 = steering
        x = x + gate1 * self.attend(modulated_norm(x, scale1, shift1), angles)
        return x + gate2 * self.mlp(modulated_norm(x, scale2, shift2))


class DiffusionTransformer(nn.Module):
    """A DiT over the tokens of an image, conditioned token by token (Peebles & Xie 2023).

    `prediction`: what the network gives, the clean "data" or the "velocity". Results are fp32.
    """

    def __init__(
        self,
        channels: int,
        feature_dim: int,
        width: int,
        depth: int,
        heads: int,
        mlp_dim: int,
        rope_theta: float,
        prediction: str,
    ) -> None:
        super().__init__()
        self.head_dim, self.rope_theta, self.prediction = width // heads, rope_theta, prediction
        self.patch = nn.Linear(channels, width)
        self.condition = Mlp(feature_dim, width, width, activation="silu")
        self.time = TimeEmbedding(width)
        self.blocks = nn.ModuleList(DiffusionBlock(width, heads, mlp_dim) for _ in range(depth))
        self.modulation, self.output = nn.Linear(width, 2 * width), nn.Linear(width, channels)

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor, grid: Grid) -> Tensor:
        """The network's own prediction (B, N, C) for noisy (B, N, C) at time (B,).

        condition: (B, N, feature_dim) features of the same places.
        """
        places = grid_places(*grid, device=noisy.device)[None]
        angles = rope(places, rope_frequencies(self.head_dim, self.rope_theta)[0])
        steering = self.time(time[:, None])
        x = self.patch(in_type_of(self.patch, noisy))
        x = x + self.condition(in_type_of(self.condition.fc1, condition))
        for block in self.blocks:
            x = block(x, steering, angles)
        scale, shift = modulation(self.modulation, steering, 2)
        x = modulated_norm(x.float(), scale, shift)
        return self.output(in_type_of(self.output, x)).float()

    def velocity(self, noisy: Tensor, time: Tensor, condition: Tensor, grid: Grid) -> Tensor:
        """dx/dt (B, N, C) at t < 1."""
        prediction = self(noisy, time, condition, grid)
        if self.prediction == "velocity":
            return prediction
        return data_to_velocity(prediction, noisy, time)


# ---- the autoencoder's latents ----------------------------------------------------------------


def pack(latents: Tensor, side: int) -> Tensor:
    """(B, c, h, w) -> (B, h/s * w/s, c s^2): squares as tokens, channel-major as in FLUX."""
    batch, channels, height, width = latents.shape
    squares = latents.reshape(batch, channels, height // side, side, width // side, side)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, grid: Grid, side: int) -> Tensor:
    """Inverse of `pack` for a grid of rows x cols tokens: (B, c, s rows, s cols)."""
    squares = tokens.unflatten(2, (-1, side, side)).unflatten(1, grid)
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def make_autoencoder(description: dict) -> nn.Module:
    """The diffusers autoencoder of a configuration: `AutoencoderKL` or `AutoencoderKLFlux2`.

    Raises:
      ImportError: diffusers is not installed, or too old for this class.
    """
    name = description["_class_name"]
    try:
        import diffusers

        kind = getattr(diffusers, name)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"this model paints latents of diffusers' {name}; pip install --upgrade diffusers"
        ) from error
    return kind.from_config(description)


def measured(statistics: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel in fp32, fetched if accelerate has offloaded them."""
    hook = getattr(statistics, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(statistics)
    found = statistics.running_mean.float(), statistics.running_var.float()
    if hook is not None:
        hook.post_forward(statistics, None)
    return found


class AutoencoderSpace:
    """Tokens of an autoencoder's latents, packed and normalised: (z - shift) * scale.

    Shift and scale are numbers of its configuration, or statistics of each packed channel.
    """

    def __init__(self, autoencoder: nn.Module, patch: int) -> None:
        self.autoencoder, config = autoencoder, autoencoder.config
        if (statistics := getattr(autoencoder, "bn", None)) is None:
            self.scale, self.shift = config.scaling_factor, config.shift_factor or 0.0
        else:
            self.shift, variance = measured(statistics)
            self.scale = (variance + config.batch_norm_eps).rsqrt()
        self.side = patch // 2 ** (len(config.block_out_channels) - 1)

    def encode(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> tokens (B, N, C): means of the posterior."""
        images = images.to(self.autoencoder.dtype)
        mean = self.autoencoder.encode(images).latent_dist.mode().float()
        return (pack(mean, self.side) - self.shift) * self.scale

    def decode(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Tokens (B, N, C) -> images (B, 3, H, W), about [-1, 1]."""
        latents = unpack(tokens / self.scale + self.shift, grid, self.side)
        return self.autoencoder.decode(latents.to(self.autoencoder.dtype)).sample.float()
