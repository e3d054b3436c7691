"""How pictures enter the transformer and how velocities leave it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .modeling_unicom_layers import (
    Linear,
    Mlp,
    Modulation,
    TimeEmbedding,
    gelu_tanh,
    modulated_norm,
    place_embedding,
)


class ImageEmbedding(nn.Module):
    """Sequence vectors of picture tokens.

    Understood pictures are projected from what `understanding` names: encoder features, latents,
    or both joined along channels. Latents, clean or noisy, have a linear map and an embedding of
    their flow time. All are told their row and column.
    """

    def __init__(self, feature_dim: int, latent_dim: int, width: int, understanding: str) -> None:
        super().__init__()
        self.width, self.understanding = width, understanding
        joined = {"latents": latent_dim, "channel_concat": feature_dim + latent_dim}
        self.projector = Mlp(joined.get(understanding, feature_dim), width, width)
        self.latent_in, self.time = Linear(latent_dim, width), TimeEmbedding(width)

    def understood(self, features: Tensor, latents: Tensor) -> Tensor:
        """Features (..., D) and latents (..., d) of the same tokens -> (..., W)."""
        if self.understanding == "latents":
            return self.projector(latents)
        if self.understanding == "channel_concat":
            return self.projector(torch.cat([features, latents], dim=-1))
        return self.projector(features)

    def latent(self, latents: Tensor, time: Tensor) -> Tensor:
        """Latents (..., d) at flow time (...) -> (..., W) fp32."""
        return self.latent_in(latents) + self.time(time)

    def forward(
        self,
        looked_at: Tensor,
        features: Tensor,
        latents: Tensor,
        time: Tensor,
        places: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        """(B, S, W) of all slots; `looked_at` (B, S, 1) chooses between the two."""
        features, latents = features.to(dtype), latents.to(dtype)
        image = torch.where(
            looked_at, self.understood(features, latents), self.latent(latents, time).to(dtype)
        )
        return image + place_embedding(places, self.width).to(dtype)


# ---- heads: hidden states (..., W) at time (...) to velocities (..., d) fp32 --------------------


class LinearHead(nn.Module):
    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.output = Linear(width, latent_dim)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        return self.output(hidden.float())


class MlpHead(nn.Module):
    def __init__(self, width: int, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.up, self.output = Linear(width, hidden_dim), Linear(hidden_dim, latent_dim)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        return self.output(gelu_tanh(self.up(hidden)).float())


class AdaLnBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp, self.modulation = Mlp(width, width, width, "silu"), Modulation(width, 3)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate = self.modulation(condition)
        return x + gate.to(x.dtype) * self.mlp(modulated_norm(x, scale, shift))


class AdaLnHead(nn.Module):
    """Residual MLP blocks modulated by time, as MAR's diffusion head (Li et al. 2024)."""

    def __init__(self, width: int, latent_dim: int, hidden_dim: int, depth: int) -> None:
        super().__init__()
        self.input, self.time = Linear(width, hidden_dim), TimeEmbedding(hidden_dim)
        self.blocks = nn.ModuleList(AdaLnBlock(hidden_dim) for _ in range(depth))
        self.modulation, self.output = Modulation(hidden_dim, 2), Linear(hidden_dim, latent_dim)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        condition = self.time(time)
        x = self.input(hidden)
        for block in self.blocks:
            x = block(x, condition)
        return self.output(modulated_norm(x.float(), *self.modulation(condition)))


HEADS = {"linear": LinearHead, "mlp": MlpHead, "adaln": AdaLnHead}


def make_head(kind: str, width: int, latent_dim: int, **sizes: int) -> nn.Module:
    """The velocity head named `kind`: linear, mlp (hidden_dim) or adaln (hidden_dim, depth)."""
    if kind not in HEADS:
        raise ValueError(f"pathway.head.kind {kind!r} is unknown to this version of the model")
    return HEADS[kind](width, latent_dim, **sizes)
