"""What models share that draw the latents of a frozen autoencoder."""

from __future__ import annotations

import torch
from PIL import Image as PilImage
from torch import Tensor

from .modeling_unicom_codec import AutoencoderSpace
from .modeling_unicom_generation import to_bytes
from .sequence_unicom import Role

Grid = tuple[int, int]


def patches_of(images: Tensor, side: int) -> Tensor:
    """Images (B, 3, H, W) -> (B, N, P * P * 3), each patch flattened as (row, column, channel)."""
    rows, cols = (size // side for size in images.shape[2:])
    squares = images.unflatten(3, (cols, side)).unflatten(2, (rows, side))
    return squares.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def images_of(patches: Tensor, grid: Grid, side: int) -> Tensor:
    """Inverse of `patches_of`."""
    squares = patches.unflatten(2, (side, side, 3)).unflatten(1, grid)
    return squares.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


class InLatents:
    """A part of a model with an `autoencoder`, in whose latents it draws. A latent is a patch."""

    pixel_channels = 0  # the autoencoder paints without noise

    @property
    def patch(self) -> int:
        """Pixels on a side of a patch."""
        return self.config.codec["patch"]

    @property
    def space(self) -> AutoencoderSpace:
        return AutoencoderSpace(self.autoencoder, self.patch)

    @torch.no_grad()
    def latents_of(self, patches: Tensor, grid: Grid) -> Tensor:
        """Normalised latents (B, N, d) fp32 of patches (B, N, P * P * 3) in -1..1: no part of what
        is trained."""
        dark = self.config.codec["darkest"]
        images = images_of(patches.float(), grid, self.patch)
        return self.space.encode(dark + (1.0 - dark) * (images + 1.0) / 2.0)

    def painted(self, latents: Tensor, grid: Grid, noise: Tensor) -> list[PilImage.Image]:
        dark = self.config.codec["darkest"]
        images = 2.0 * (self.space.decode(latents, grid) - dark) / (1.0 - dark) - 1.0
        return [PilImage.fromarray(image) for image in to_bytes(images.permute(0, 2, 3, 1))]

    def image_vectors(self, vectors: Tensor, *, role: Role, grid: Grid) -> Tensor:
        """They are the same under every role."""
        return vectors
