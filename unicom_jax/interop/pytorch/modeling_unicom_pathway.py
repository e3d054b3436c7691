"""How pictures enter the transformer and how velocities leave it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .modeling_unicom_layers import (
    Mlp,
    TimeEmbedding,
    gelu_tanh,
    in_type_of,
    modulated_norm,
    modulation,
    place_embedding,
)


class ImageEmbedding(nn.Module):
    """Sequence vectors of picture tokens.

    Understood pictures are projected from what `understanding` names: encoder features, latents,
    or both joined along channels. Latents, clean or noisy, have a linear map and an embedding of
    their flow time. The row and column of a token is added to all.
    """

    def __init__(self, feature_dim: int, latent_dim: int, width: int, understanding: str) -> None:
        super().__init__()
        self.width, self.understanding = width, understanding
        joined = {"latents": latent_dim, "channel_concat": feature_dim + latent_dim}
        self.projector = Mlp(joined.get(understanding, feature_dim), width, width)
        self.latent_in, self.time = nn.Linear(latent_dim, width), TimeEmbedding(width)

    def understood(self, features: Tensor, latents: Tensor) -> Tensor:
        """Features (..., D) and latents (..., d) of the same tokens -> (..., W)."""
        seen = {"latents": latents}.get(self.understanding, features)
        if self.understanding == "channel_concat":
            seen = torch.cat([features, latents.to(features)], dim=-1)
        return self.projector(in_type_of(self.projector.fc1, seen))

    def latent(self, latents: Tensor, time: Tensor) -> Tensor:
        """Latents (..., d) at flow time (...) -> (..., W) in the type of the time embedding."""
        return self.latent_in(in_type_of(self.latent_in, latents)) + self.time(time)

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
# A head is kept in fp32 (`_keep_in_fp32_modules_strict`).


class LinearHead(nn.Module):
    def __init__(self, width: int, latent_dim: int) -> None:
        super().__init__()
        self.output = nn.Linear(width, latent_dim)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        return self.output(in_type_of(self.output, hidden)).float()


class MlpHead(nn.Module):
    def __init__(self, width: int, latent_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.up, self.output = nn.Linear(width, hidden_dim), nn.Linear(hidden_dim, latent_dim)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        return self.output(gelu_tanh(self.up(in_type_of(self.up, hidden)))).float()


class AdaLnBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = Mlp(width, width, width, "silu")
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift, gate = modulation(self.modulation, condition, 3)
        return x + gate.to(x.dtype) * self.mlp(modulated_norm(x, scale, shift))


class AdaLnHead(nn.Module):
    """Residual MLP blocks modulated by time, as MAR's diffusion head (Li et al. 2024)."""

    def __init__(self, width: int, latent_dim: int, hidden_dim: int, depth: int) -> None:
        super().__init__()
        self.input, self.time = nn.Linear(width, hidden_dim), TimeEmbedding(hidden_dim)
        self.blocks = nn.ModuleList(AdaLnBlock(hidden_dim) for _ in range(depth))
        self.modulation = nn.Linear(hidden_dim, 2 * hidden_dim)
        self.output = nn.Linear(hidden_dim, latent_dim)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        condition = self.time(time)
        x = self.input(in_type_of(self.input, hidden))
        for block in self.blocks:
            x = block(x, condition)
        x = modulated_norm(x.float(), *modulation(self.modulation, condition, 2))
        return self.output(in_type_of(self.output, x)).float()


HEADS = {"linear": LinearHead, "mlp": MlpHead, "adaln": AdaLnHead}


def make_head(kind: str, width: int, latent_dim: int, **sizes: int) -> nn.Module:
    """The velocity head named `kind`: linear, mlp (hidden_dim) or adaln (hidden_dim, depth)."""
    if kind not in HEADS:
        raise ValueError(f"pathway.head.kind {kind!r} is unknown to this version of the model")
    return HEADS[kind](width, latent_dim, **sizes)
