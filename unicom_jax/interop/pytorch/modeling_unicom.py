"""UniCom: one transformer reads words and pictures and draws compressed continuous latents.

picture -> vision_model -> features -> compressor -> latents       language_model reads both
words + noise -> language_model -> velocity -> ... -> latents -> decompressor -> pixel_decoder

from transformers import AutoModel
model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
model.caption(picture); model.draw("a red circle"); model.edit(picture, "make it blue")

It also is a causal language model of transformers, with `forward`, `generate` and pipelines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image as PilImage
from torch import Tensor, nn
from transformers.utils import ModelOutput

from .configuration_unicom import UnicomConfig
from .image_processing_unicom import unpatchify
from .modeling_unicom_base import UnicomBase
from .modeling_unicom_codec import (
    AutoencoderSpace,
    DiffusionTransformer,
    LatentStatistics,
    make_autoencoder,
    make_projections,
)
from .modeling_unicom_flow import data_to_velocity, integrate
from .modeling_unicom_flux import FluxDecoder
from .modeling_unicom_generation import to_bytes
from .modeling_unicom_language import LanguageModel, interval_mask
from .modeling_unicom_layers import grid_places, place_embedding
from .modeling_unicom_pathway import ImageEmbedding, make_head
from .modeling_unicom_reading import Context
from .modeling_unicom_sd3 import SD3Decoder
from .modeling_unicom_vision import Encoder, VisionTransformer
from .sequence_unicom import Role

Grid = tuple[int, int]


@dataclasses.dataclass
class UnicomOutput(ModelOutput):
    """What `UnicomModel.forward_slots` gives.

    Attributes:
      logits: (B, S, vocab_size) fp32 scores of the next word.
      velocity: (B, S, latent_dim) fp32, valid at slots that hold noisy latents; None if the pathway
        draws with a separate decoder.
      hidden_states: (B, S, W) after the final norm.
    """

    logits: Tensor | None = None
    velocity: Tensor | None = None
    hidden_states: Tensor | None = None


class UnicomModel(UnicomBase):
    """All parts of a model of UniCom's pathways.

    The codec, flow times and the flow head stay in fp32 whatever type the model is loaded in.
    """

    _no_split_modules = ("DecoderLayer", "EncoderLayer", "DiffusionBlock")
    _keep_in_fp32_modules_strict = (
        "compressor", "decompressor", "statistics", r"^autoencoder\.", r"^head\.",
        r"^embedding\.time\.", r"^flow_decoder\.time\.",
    )  # fmt: skip

    def __init__(self, config: UnicomConfig) -> None:
        super().__init__(config)
        codec, pathway = config.codec, config.pathway
        self.vision_model = VisionTransformer(**config.vision)
        self.compressor, self.decompressor = make_projections(**codec)
        self.statistics = LatentStatistics(codec["latent_dim"])
        self.pixel_decoder = make_pixel_decoder(**config.pixel_decoder)
        self.autoencoder = make_autoencoder(config.autoencoder) if config.autoencoder else None
        self.language_model = LanguageModel(**config.language)
        width = config.language["width"]
        self.embedding = ImageEmbedding(
            codec["feature_dim"], codec["latent_dim"], width, config.sequence["understanding"]
        )
        if pathway["kind"] == "transfusion":
            self.head = make_head(width=width, latent_dim=codec["latent_dim"], **pathway["head"])
        else:  # the frozen language model reads, and a separate decoder draws
            self.head = None
            self.queries = nn.Embedding(pathway["queries"], width)
            sizes = width, config.language["heads"], 4 * width
            self.connector = Encoder(pathway["connector_depth"], *sizes)
            self.flow_decoder = DiffusionTransformer(**pathway["flow_decoder"])
        if config.pixel_decoder["kind"] == "dit":  # the others are large, and trained in bfloat16
            self._keep_in_fp32_modules_strict = (
                *self._keep_in_fp32_modules_strict,
                r"^pixel_decoder\.",
            )
        self.finish()

    # ---- pictures ---------------------------------------------------------------------------

    def look(self, patches: Tensor, grid: Grid) -> Tensor:
        """Features (B, N, D) of patches (B, N, P * P * 3) in -1..1."""
        return self.vision_model(patches.to(self.dtype), grid)

    def compress(self, features: Tensor, grid: Grid) -> Tensor:
        """Normalised latents (B, n, d) fp32 of features (B, N, D)."""
        return self.statistics(self.compressor(features, grid))

    def decompress(self, latents: Tensor, grid: Grid) -> Tensor:
        """Features (B, N, D) fp32 of normalised latents (B, n, d)."""
        return self.decompressor(self.statistics(latents, restore=True), grid)

    @property
    def pixel_channels(self) -> int:
        return self.config.pixel_decoder["channels"]

    @torch.no_grad()
    def encode(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Features (B, N, D) and normalised latents (B, n, d) of prepared pictures of one size."""
        return self.seen(*self.as_patches(images))

    def seen(self, patches: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
        """Features (B, N, D) and normalised latents (B, n, d)."""
        features = self.look(patches, grid)
        return features, self.compress(features, grid)

    def image_vectors(self, features: Tensor, latents: Tensor, *, role: Role, grid: Grid) -> Tensor:
        """(n, W) of one picture's features (N, D) and latents (n, d) under a role."""
        if role == Role.UNDERSTAND:
            vectors = self.embedding.understood(features, latents)
        else:
            time = torch.ones(len(latents), device=latents.device)
            vectors = self.embedding.latent(latents, time)
        places = grid_places(*grid, device=vectors.device)
        # Both parts are rounded before they are added, as in training.
        places = place_embedding(places, self.embedding.width).to(self.dtype)
        return vectors.to(self.dtype) + places

    def begin_drawing(self, context: Context, grid: Grid) -> Callable[[Tensor, Tensor], Tensor]:
        count, device = grid[0] * grid[1], context.lengths.device
        run = self.slots_behind(context, grid)
        places = place_embedding(grid_places(*grid, device=device), self.embedding.width)
        if self.head is None:
            queries = self.queries(torch.arange(count, device=device))
            queries = (queries + places).expand(len(context.lengths), -1, -1)
            condition = self.connector(run(queries))
            return lambda noisy, time: self.flow_decoder.velocity(noisy, time, condition, grid)

        def velocity(noisy: Tensor, time: Tensor) -> Tensor:
            slot_time = time[:, None].expand(-1, count)
            hidden = run(self.embedding.latent(noisy, slot_time) + places)
            return self.head_velocity(hidden, noisy, slot_time)

        return velocity

    def painted(self, latents: Tensor, grid: Grid, noise: Tensor) -> list[PilImage.Image]:
        condition = self.decompress(latents, grid)

        def field(x: Tensor, time: Tensor) -> Tensor:
            times = time.to(x).expand(len(x))
            return self.pixel_decoder.velocity(x, times, condition, grid)

        painted = integrate(field, noise, self.defaults.codec_steps)
        patch = self.config.vision["patch"]
        if self.space is not None:
            images = self.space.decode(painted, grid).permute(0, 2, 3, 1)
            return [PilImage.fromarray(image) for image in to_bytes(images)]
        return [PilImage.fromarray(unpatchify(p, grid, patch)) for p in to_bytes(painted)]

    # ---- a prepared sequence ----------------------------------------------------------------

    def forward_slots(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        intervals: Tensor | None = None,
        roles: Tensor | None = None,
        features: Tensor | None = None,
        latents: Tensor | None = None,
        time: Tensor | None = None,
        places: Tensor | None = None,
    ) -> UnicomOutput:
        """One pass over whole rows, as in training; gradients flow.

        Args:
          input_ids: (B, S), anything at image slots.
          positions: (B, S, 2) rotary (y, x); None: those of plain text.
          intervals: (B, S, 4), see `interval_mask`; None: causal.
          roles: (B, S), what each slot holds (`Role`); None: words only.
          features: (B, S, D) encoder features at each slot, `latents` (B, S, d) normalised latents,
            noisy ones where the role is NOISY; `time` (B, S) their flow time, 1 for clean ones;
            `places` (B, S, 2) their row and column. All are needed where `roles` is given.
        """
        hidden = self.language_model.embed(input_ids)
        index = torch.arange(input_ids.shape[1], device=input_ids.device)
        if positions is None:
            positions = index[:, None].expand(*input_ids.shape, 2)
        if intervals is None:
            zero = torch.zeros_like(index)
            intervals = torch.stack([zero, index + 1, zero, zero], -1).expand(*input_ids.shape, 4)
        if roles is not None:
            image = self.embedding(
                (roles == Role.UNDERSTAND)[..., None], features, latents, time, places, hidden.dtype
            )
            hidden = torch.where((roles > Role.TEXT)[..., None], image, hidden)
        mask = interval_mask(intervals, input_ids.shape[1])
        hidden = self.language_model(hidden, positions, mask)
        velocity = None
        if self.head is not None and time is not None:
            velocity = self.head_velocity(hidden, latents, time)
        return UnicomOutput(self.language_model.logits(hidden), velocity, hidden)

    def head_velocity(self, hidden: Tensor, noisy: Tensor, time: Tensor) -> Tensor:
        """Velocity (B, S, d) of hidden states (B, S, W) at noisy latents (B, S, d), time (B, S)."""
        prediction = self.head(hidden, time)
        if self.config.pathway["prediction"] == "velocity":
            return prediction
        return data_to_velocity(prediction, noisy, time)

    @property
    def space(self) -> AutoencoderSpace | None:
        """What the pixel decoder paints in; None: pixels."""
        if self.autoencoder is None:
            return None
        return AutoencoderSpace(self.autoencoder, self.config.vision["patch"])


def make_pixel_decoder(kind: str, **sizes: Any) -> nn.Module:
    """The pixel decoder named `kind`: "dit", "flux" or "sd3"."""
    kinds = {"dit": DiffusionTransformer, "flux": FluxDecoder, "sd3": SD3Decoder}
    if kind not in kinds:
        raise ValueError(f"pixel_decoder.kind {kind!r} is unknown to this version of the model")
    return kinds[kind](**sizes)
