"""Cheers (arXiv 2603.12793): one transformer reads words and pictures; details pass it by.

picture -> autoencoder -> latents -> decoder, vision_model, projector -> slots of language_model
noisy latents -> the same -> language_model -> head -> velocity -> ... -> latents -> autoencoder

from transformers import AutoModel
model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
model.caption(picture); model.draw("a red circle"); model.edit(picture, "make it blue")

It also is a causal language model of transformers, with `forward`, `generate` and pipelines. All
pictures of a batch have one grid of patches; a latent stands for a patch, a slot for fold x fold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .configuration_unicom import UnicomCheersConfig
from .modeling_unicom_autoencoded import InLatents, patches_of
from .modeling_unicom_base import UnicomBase
from .modeling_unicom_codec import make_autoencoder, measured, unpack
from .modeling_unicom_flow import GRIDS, data_to_velocity
from .modeling_unicom_language import LanguageModel
from .modeling_unicom_layers import (
    Attention,
    LayerNorm,
    Mlp,
    RMSNorm,
    SwiGlu,
    TimeEmbedding,
    apply_rope,
    in_type_of,
    join_windows,
    modulation,
    rope,
    rope_frequencies,
)
from .modeling_unicom_reading import Context
from .modeling_unicom_vision import VisionTransformer

Grid = tuple[int, int]


def split_windows(x: Tensor, grid: Grid, side: int) -> Tensor:
    """Inverse of `join_windows`; `grid` is that of the larger number of tokens."""
    squares = x.unflatten(2, (side, side, -1)).unflatten(1, (grid[0] // side, grid[1] // side))
    return squares.transpose(2, 3).flatten(1, 4)


# ---- the tokenizer ----------------------------------------------------------------------------


class LatentDecoder(nn.Module):
    """The decoder half of an autoencoder that was trained on with the model, on noisy latents too.

    autoencoder: the configuration of diffusers' `AutoencoderKLFlux2`. patch: pixels on a side of a
    packed token.
    """

    def __init__(self, autoencoder: dict[str, Any], patch: int) -> None:
        super().__init__()
        whole = make_autoencoder(autoencoder)
        self.decoder, self.post_quant_conv, self.bn = whole.decoder, whole.post_quant_conv, whole.bn
        self.eps = whole.config.batch_norm_eps
        self.side = patch // 2 ** (len(whole.config.block_out_channels) - 1)

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Packed normalised latents (B, N, C) -> images (B, 3, H, W), clipped nowhere."""
        mean, variance = measured(self.bn)
        latents = unpack(tokens * (variance + self.eps).sqrt() + mean, grid, self.side)
        latents = in_type_of(self.decoder.conv_in, latents)
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)


class SlotProjector(nn.Module):
    """Features of fold x fold neighbours, normalised one by one, to the vector of a slot."""

    def __init__(self, in_dim: int, out_dim: int, fold: int) -> None:
        super().__init__()
        self.fold, joined = fold, fold**2 * in_dim
        self.norm, self.mlp = LayerNorm(in_dim, 1e-5), Mlp(joined, joined, out_dim, "gelu")

    def forward(self, features: Tensor, grid: Grid) -> Tensor:
        return self.mlp(join_windows(self.norm(features), grid, self.fold))


# ---- the flow head ----------------------------------------------------------------------------


def modulated(norm: RMSNorm, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return norm(x.float()) * (1 + scale) + shift


class ModulatedBlock(Attention):
    """Attention within the picture and a SwiGLU, each shifted, scaled and gated by time."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.modulation = nn.Linear(width, 6 * width)
        self.attention_norm, self.mlp_norm = RMSNorm(width), RMSNorm(width)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.mlp = SwiGlu(width, 4 * width)

    def attend(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.head_dim))
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        return self.o_proj(self.mix(apply_rope(q, *angles), apply_rope(k, *angles), v))

    def forward(self, x: Tensor, time: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
        steering = modulation(self.modulation, time, 6)
        shift1, scale1, gate1, shift2, scale2, gate2 = steering
        x = x + gate1 * self.attend(modulated(self.attention_norm, x, scale1, shift1), angles)
        return x + gate2 * self.mlp(modulated(self.mlp_norm, x, scale2, shift2))


class ModulatedStack(nn.Module):
    """Blocks over the tokens of a picture, steered by time, and a final layer to `out_dim`."""

    def __init__(self, width: int, out_dim: int, depth: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.blocks = nn.ModuleList(ModulatedBlock(width, heads, kv_heads) for _ in range(depth))
        self.norm, self.modulation = RMSNorm(width), nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, out_dim)

    def forward(self, x: Tensor, time: Tensor, positions: Tensor) -> Tensor:
        """x (B, N, W), embedded time (B, 1, W) and rotary positions (N,) -> (B, N, out_dim)."""
        places = positions[None, :, None].expand(-1, -1, 2)
        angles = rope(places, rope_frequencies(self.head_dim, 10_000.0)[0])
        for block in self.blocks:
            x = block(x, time, angles)
        shift, scale = modulation(self.modulation, time, 2)
        return self.output(modulated(self.norm, x, scale, shift))


class CascadedHead(nn.Module):
    """Semantics of hidden states first; then details of the embedded patches, gated. In fp32."""

    def __init__(
        self,
        semantics: dict[str, int],
        details: dict[str, int],
        fold: int,
        gate: bool,
        norm: bool,
        positions: str,
    ) -> None:
        super().__init__()
        width = details["width"]
        self.fold, self.positions = fold, positions
        self.semantics, self.details = ModulatedStack(**semantics), ModulatedStack(**details)
        self.semantics_time = TimeEmbedding(semantics["width"], scale=1.0)
        self.details_time = TimeEmbedding(width, scale=1.0)
        self.gate = Mlp(width, width, 1, "silu") if gate else None
        self.norm = LayerNorm(width, 1e-5) if norm else None

    def forward(self, hidden: Tensor, time: Tensor, embedded: Tensor, grid: Grid) -> Tensor:
        """Velocity (B, N, d) of hidden states (B, n, W) at time (B,), of a grid of latents.

        embedded: (B, N, V), what the encoder's first block reads of the noisy picture.
        """
        hidden = in_type_of(self.semantics.output, hidden)
        order = torch.arange(grid[0] * grid[1], device=hidden.device)
        joined = self.semantics(
            hidden, self.semantics_time(time[:, None]), order[: hidden.shape[1]]
        )
        x = split_windows(joined, grid, self.fold)
        if self.gate is not None:
            x = x + self.gate(x) * embedded.to(x)
        if self.norm is not None:
            x = self.norm(x)
        if self.positions == "released":
            order = order % ((len(order) + 1) // 2)  # both halves count from 0
        return self.details(x, self.details_time(time[:, None]), order).float()


# ---- the model --------------------------------------------------------------------------------


class UnicomCheersModel(InLatents, UnicomBase):
    """All parts of a model of the family Cheers.

    The autoencoder, the decoder and the flow head stay in fp32 whatever type the model is loaded
    in.
    """

    config_class = UnicomCheersConfig
    _no_split_modules = ("DecoderLayer", "EncoderLayer", "ModulatedBlock")
    _keep_in_fp32_modules_strict = (r"^autoencoder\.", r"^decoder\.", r"^head\.")

    def __init__(self, config: UnicomCheersConfig) -> None:
        super().__init__(config)
        pathway, patch = config.pathway, config.vision["patch"]
        self.vision_model = VisionTransformer(**config.vision)
        self.autoencoder = make_autoencoder(config.autoencoder)
        self.decoder = self.latent_in = None
        if pathway["pixels"]:
            self.decoder = LatentDecoder(config.autoencoder, patch)
        else:  # latents straight into the encoder
            self.latent_in = nn.Linear(config.codec["latent_dim"], 3 * patch**2)
        self.projector = SlotProjector(
            config.vision["width"], config.language["width"], pathway["fold"]
        )
        names = ("semantics", "details", "fold", "gate", "norm", "positions")
        self.head = CascadedHead(**{name: pathway[name] for name in names})
        self.language_model = LanguageModel(**config.language)
        self.finish()

    # ---- pictures and latents -----------------------------------------------------------------

    @property
    def patch(self) -> int:
        return self.config.vision["patch"]

    @property
    def time_grids(self) -> tuple[str, ...]:
        return GRIDS if self.config.pathway["prediction"] == "velocity" else GRIDS[:1]

    def tokens(self, latents: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Vectors of slots (B, n, W) and embedded patches (B, N, V) of latents, noisy or clean."""
        if self.decoder is None:
            patches = self.latent_in(in_type_of(self.latent_in, latents))
        else:
            patches = patches_of(self.decoder(latents, grid), self.patch)
        vision = self.vision_model
        embedded = vision.embeddings(patches.to(self.dtype), grid)
        features = vision.post_layernorm(vision.encoder(embedded))
        return self.projector(in_type_of(self.projector.mlp.fc1, features), grid), embedded

    # ---- reading and drawing ------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Vectors of slots (B, n, W) and normalised latents (B, N, d) of prepared pictures."""
        patches, grid = self.as_patches(images)
        latents = self.latents_of(patches, grid)
        return self.tokens(latents, grid)[0], latents

    def seen(self, patches: Tensor, grid: Grid) -> tuple[Tensor]:
        return (self.tokens(self.latents_of(patches, grid), grid)[0],)

    def begin_drawing(self, context: Context, grid: Grid) -> Callable[[Tensor, Tensor], Tensor]:
        fold = self.config.pathway["fold"]
        run = self.slots_behind(context, (grid[0] // fold, grid[1] // fold))

        def velocity(noisy: Tensor, time: Tensor) -> Tensor:
            vectors, embedded = self.tokens(noisy, grid)
            prediction = self.head(run(vectors), time, embedded, grid)
            if self.config.pathway["prediction"] == "velocity":
                return prediction
            return data_to_velocity(prediction, noisy, time)

        return velocity
