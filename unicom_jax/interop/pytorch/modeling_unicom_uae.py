"""UAE (arXiv 2509.09666): a caption is all that the drawer sees of a picture.

picture -> visual -> slots of language_model -> words
words -> language_model -> decoder (projector, Stable Diffusion 3) -> latents -> autoencoder

from transformers import AutoModel
model = AutoModel.from_pretrained(FOLDER, trust_remote_code=True)
caption = model.caption(picture)[0]; model.draw(caption)

It also is a causal language model of transformers, with `forward`, `generate` and pipelines. All
pictures have one size; a latent stands for a patch, a slot of a picture that is read for
merge x merge of them. A picture that is drawn has no slots: the decoder sees the last hidden states
of all that precedes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from .configuration_unicom import UnicomUaeConfig
from .modeling_unicom_autoencoded import InLatents, images_of, patches_of
from .modeling_unicom_base import UnicomBase
from .modeling_unicom_codec import make_autoencoder
from .modeling_unicom_language import LanguageModel
from .modeling_unicom_qwen_vision import QwenVision
from .modeling_unicom_reading import Context
from .modeling_unicom_sd3 import SD3Decoder

Grid = tuple[int, int]


def resized(levels: Tensor, grid: Grid, patch: int, side: int) -> Tensor:
    """Patches (B, N, P * P * 3) in 0..255 of `patch` pixels on a side, as patches of `side` pixels.

    Whole pictures are scaled to as many patches as before.
    """
    if side == patch:
        return levels
    size = (grid[0] * side, grid[1] * side)
    images = images_of(levels, grid, patch)
    scaled = nn.functional.interpolate(images, size, mode="bicubic", antialias=True)
    return patches_of(scaled.clamp(0.0, 255.0).round(), side)


class UnicomUaeModel(InLatents, UnicomBase):
    """All parts of a model of the family UAE.

    The autoencoder stays in fp32 whatever type the model is loaded in.
    """

    config_class = UnicomUaeConfig
    _no_split_modules = ("DecoderLayer", "TowerBlock", "JointTransformerBlock")
    _keep_in_fp32_modules_strict = (r"^autoencoder\.",)

    def __init__(self, config: UnicomUaeConfig) -> None:
        super().__init__(config)
        self.visual = QwenVision(**config.vision)
        self.autoencoder = make_autoencoder(config.autoencoder)
        self.decoder = SD3Decoder(**config.pathway["decoder"])
        self.language_model = LanguageModel(**config.language)
        self.finish()

    # ---- pictures -------------------------------------------------------------------------------

    def look(self, patches: Tensor, grid: Grid) -> Tensor:
        """Vectors of slots (B, n, W) of patches (B, N, P * P * 3) in -1..1."""
        levels = ((patches.float() + 1.0) * 127.5).round()
        return self.visual(resized(levels, grid, self.patch, self.visual.patch), grid)

    @torch.no_grad()
    def encode(self, images: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Vectors of slots (B, n, W) and normalised latents (B, N, d) of prepared pictures."""
        patches, grid = self.as_patches(images)
        return self.look(patches, grid), self.latents_of(patches, grid)

    def seen(self, patches: Tensor, grid: Grid) -> tuple[Tensor]:
        return (self.look(patches, grid),)

    # ---- drawing --------------------------------------------------------------------------------

    def begin_drawing(self, context: Context, grid: Grid) -> Callable[[Tensor, Tensor], Tensor]:
        words = self.decoder.connect(context.states).to(context.lengths.device)
        # The network has no mask of words, so prefixes of different lengths are not one batch.
        rows = {length: context.lengths == length for length in context.lengths.unique().tolist()}

        def velocity(noisy: Tensor, time: Tensor) -> Tensor:
            speeds = torch.empty_like(noisy, dtype=torch.float32)
            for length, some in rows.items():
                context_of = words[some, :length]
                speeds[some] = self.decoder.speed(noisy[some], time[some], context_of, grid)
            return speeds

        return velocity
