"""Reading: pictures through the encoder, and conversations into a key-value cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig

from .image_processing_unicom import patchify
from .modeling_unicom_language import KVCache, interval_mask
from .modeling_unicom_layers import grid_places, place_embedding
from .processing_unicom import Prefix, Role, UnicomProcessor

Grid = tuple[int, int]


@dataclasses.dataclass
class Context:
    """Prefixes in a cache.

    Attributes:
      hidden: (B, W) state of each prefix's last slot. start: the first free slot.
      lengths, next_positions: (B,) slots in use, and the rotary index of what follows.
    """

    hidden: Tensor
    cache: KVCache
    start: int
    lengths: Tensor
    next_positions: Tensor


class Reading:
    """The half of `UnicomModel` that takes in."""

    _processor: UnicomProcessor | None = None
    _defaults: GenerationConfig | None = None

    @property
    def processor(self) -> UnicomProcessor:
        """Tokenizer and image processor, from the folder the model was loaded from."""
        if self._processor is None:
            self._processor = UnicomProcessor.from_pretrained(
                self.config.name_or_path, self.config.sequence
            )
        return self._processor

    @property
    def defaults(self) -> GenerationConfig:
        """generation_config.json: max_new_tokens, flow_steps, guidance, sampler, ..."""
        if self._defaults is None:
            self._defaults = GenerationConfig.from_pretrained(self.config.name_or_path)
        return self._defaults

    @torch.no_grad()
    def encode(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Features (B, N, D) and normalised latents (B, n, d) of prepared pictures of one size."""
        patch = self.processor.images.patch
        patches = torch.from_numpy(np.stack([patchify(image, patch) for image in images]))
        grid = self.processor.images.grid(images[0])
        features = self.look(patches.to(self.device), grid)
        return features, self.compress(features, grid)

    @torch.no_grad()
    def read(self, prefixes: Sequence[Prefix], room: int) -> Context:
        """Reads prefixes, one a row, into a cache with `room` slots behind them."""
        rows, start = len(prefixes), max(map(len, prefixes))
        device = self.device
        tokens = torch.zeros(rows, start, dtype=torch.long, device=device)
        positions = torch.zeros(rows, start, 2, dtype=torch.long, device=device)
        intervals = torch.zeros(rows, start, 4, dtype=torch.long, device=device)
        for row, prefix in enumerate(prefixes):
            length = len(prefix)
            tokens[row, :length] = torch.tensor(prefix.tokens, device=device)
            positions[row, :length] = torch.tensor(prefix.positions, device=device)
            intervals[row, :length, 1] = torch.tensor(prefix.sees, device=device)
        hidden = self.language_model.embed(tokens)
        self._place_images(hidden, prefixes)
        cache = self.language_model.new_cache(rows, start + room)
        mask = interval_mask(intervals, start)
        hidden = self.language_model(hidden, positions, mask, cache)
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        following = torch.tensor([prefix.next_position for prefix in prefixes], device=device)
        last = hidden[torch.arange(rows, device=device), lengths - 1]
        return Context(last, cache, start, lengths, following)

    def _place_images(self, hidden: Tensor, prefixes: Sequence[Prefix]) -> None:
        """Writes the vectors of all pictures into their slots; equal sizes are seen together."""
        found = [(r, i) for r, prefix in enumerate(prefixes) for i in range(len(prefix.images))]
        pixels = {(r, i): prefixes[r].images[i] for r, i in found}
        for shape in {image.shape for image in pixels.values()}:
            members = [key for key in found if pixels[key].shape == shape]
            features, latents = self.encode([pixels[key] for key in members])
            for (row, image), feature, latent in zip(members, features, latents, strict=True):
                for block in (b for b in prefixes[row].blocks if b.image == image):
                    stop = block.start + block.grid[0] * block.grid[1]
                    vectors = self._image_vectors(feature, latent, block.role, block.grid)
                    hidden[row, block.start : stop] = vectors

    def _image_vectors(self, features: Tensor, latents: Tensor, role: Role, grid: Grid) -> Tensor:
        """(n, W) of one picture's features (N, D) and latents (n, d) under a role."""
        latents = latents.to(self.dtype)
        if role == Role.UNDERSTAND:
            vectors = self.embedding.understood(features, latents)
        else:
            time = torch.ones(len(latents), device=latents.device)
            vectors = self.embedding.latent(latents, time).to(self.dtype)
        places = grid_places(*grid, device=latents.device)
        return vectors + place_embedding(places, self.embedding.width).to(self.dtype)
