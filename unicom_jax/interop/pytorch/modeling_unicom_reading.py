"""Reading: pictures through the encoder, and conversations into a key-value cache."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, GenerationConfig

from .image_processing_unicom import patchify, to_unit
from .modeling_unicom_language import interval_mask
from .processing_unicom import UnicomProcessor
from .sequence_unicom import Block, Format, Prefix, Role, position_axes

Grid = tuple[int, int]


@dataclasses.dataclass
class Context:
    """Prefixes in a cache.

    Attributes:
      states: (B, S, W) after the final norm, of all slots; any values at padding.
      hidden: (B, W) that of each prefix's last slot.
      start: S, the slots in the cache, padding included.
      lengths, next_positions: (B,) slots in use, and the rotary index of what follows.
    """

    states: Tensor
    hidden: Tensor
    cache: Cache
    start: int
    lengths: Tensor
    next_positions: Tensor


@dataclasses.dataclass
class Placed:
    """A picture and its slots in a row of a batch: patches (N, P * P * 3) in -1..1."""

    row: int
    patches: Tensor
    grid: Grid
    blocks: Sequence[Block]


class Reading:
    """The part of a model that reads pictures and words."""

    _processor: UnicomProcessor | None = None

    @property
    def processor(self) -> UnicomProcessor:
        """Tokenizer and image processor, from the folder that the model was loaded from."""
        if self._processor is None:
            raise ValueError(
                "this model has no tokenizer and no image processor: they were not beside its "
                "weights; load it with from_pretrained from an exported folder"
            )
        return self._processor

    @property
    def defaults(self) -> GenerationConfig:
        """generation_config.json: max_new_tokens, flow_steps, guidance, sampler, ..."""
        return self.generation_config

    @property
    def format(self) -> Format:
        """How the model writes words and pictures."""
        return Format(**self.config.sequence)

    @property
    def axes(self) -> int:
        """Coordinates of a rotary position."""
        return position_axes(self.format.positions)

    @property
    def work_device(self) -> torch.device:
        """The device on which computing starts, also if weights are offloaded from it."""
        embedding = self.get_input_embeddings()
        hook = getattr(embedding, "_hf_hook", None)  # of accelerate, or a sequence of them
        for one in getattr(hook, "hooks", (hook,)):
            if (found := getattr(one, "execution_device", None)) is not None:
                return torch.empty(0, device=found).device
        return embedding.weight.device

    def as_patches(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Grid]:
        """Patches (B, N, P * P * 3) in -1..1 of prepared pictures of one size, and their grid."""
        images_of = self.processor.image_processor
        patches = np.stack([patchify(image, images_of.patch) for image in images])
        return torch.from_numpy(to_unit(patches)).to(self.work_device), images_of.grid(images[0])

    @torch.no_grad()
    def read(self, prefixes: Sequence[Prefix]) -> Context:
        """Reads prefixes, one per row, into a cache."""
        rows, start = len(prefixes), max(map(len, prefixes))
        device = self.work_device
        tokens = torch.zeros(rows, start, dtype=torch.long, device=device)
        positions = torch.zeros(rows, start, self.axes, dtype=torch.long, device=device)
        intervals = torch.zeros(rows, start, 4, dtype=torch.long, device=device)
        for row, prefix in enumerate(prefixes):
            length = len(prefix)
            tokens[row, :length] = torch.tensor(prefix.tokens, device=device)
            positions[row, :length] = torch.tensor(prefix.positions, device=device)
            intervals[row, :length, 1] = torch.tensor(prefix.sees, device=device)
        hidden = self.language_model.embed(tokens)
        self.place_pictures(hidden, self._pictures(prefixes))
        cache = DynamicCache()
        states = self.language_model(hidden, positions, interval_mask(intervals, start), cache)
        lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
        following = torch.tensor([prefix.next_position for prefix in prefixes], device=device)
        last = lengths.to(states.device) - 1
        chosen = states[torch.arange(rows, device=states.device), last].to(device)
        return Context(states, chosen, cache, start, lengths, following)

    def _pictures(self, prefixes: Sequence[Prefix]) -> list[Placed]:
        processor = self.processor.image_processor
        return [
            Placed(
                row,
                torch.from_numpy(to_unit(patchify(image, processor.patch))),
                processor.grid(image),
                [block for block in prefix.blocks if block.image == number],
            )
            for row, prefix in enumerate(prefixes)
            for number, image in enumerate(prefix.images)
        ]

    def place_pictures(self, hidden: Tensor, pictures: Sequence[Placed]) -> None:
        """Writes the vectors of pictures into their slots of hidden (B, S, W).

        Pictures of the same grid are encoded together.
        """
        for grid in sorted({picture.grid for picture in pictures}):
            some = [picture for picture in pictures if picture.grid == grid]
            patches = torch.stack([picture.patches for picture in some])
            seen = zip(*self.seen(patches.to(self.work_device), grid), strict=True)
            for picture, one in zip(some, seen, strict=True):
                for block in picture.blocks:
                    stop = block.start + block.grid[0] * block.grid[1]
                    vectors = self.image_vectors(*one, role=block.role, grid=block.grid)
                    hidden[picture.row, block.start : stop] = vectors.to(hidden)

    def seen(self, patches: Tensor, grid: Grid) -> tuple[Tensor, ...]:
        """The model's outputs for patches (B, N, P * P * 3) of pictures of one grid."""
        raise NotImplementedError(f"{type(self).__name__} reads no pictures")

    def image_vectors(self, *seen: Tensor, role: Role, grid: Grid) -> Tensor:
        """(n, W) for the slots of one picture under a role, from its rows of `seen`."""
        raise NotImplementedError(f"{type(self).__name__} reads no pictures")
