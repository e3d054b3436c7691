"""The standard step that every contestant takes: its sizes and its batch, as plain NumPy.

A row is 127 text tokens and the token that opens an image, then the image's 64 noisy latents. Text
is causal; the latents see all of the text and each other. Text slots predict the next token, image
slots the velocity; the loss is 5 · flow + 1 · text, the optimiser AdamW after clipping, all fp32.
"""

from __future__ import annotations

import dataclasses

import numpy as np

FLOW_WEIGHT, TEXT_WEIGHT = 5.0, 1.0
LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.01, 1.0


@dataclasses.dataclass(frozen=True)
class Standard:
    """Sizes of the step; the defaults are the standard ones."""

    width: int = 256
    depth: int = 6
    heads: int = 4
    kv_heads: int = 2
    mlp_dim: int = 1024
    vocab_size: int = 4096
    text_tokens: int = 128
    grid: int = 8  # the image is grid x grid tokens
    latent_dim: int = 32
    rows: int = 8
    time_frequencies: int = 256

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    @property
    def image_tokens(self) -> int:
        return self.grid * self.grid

    @property
    def slots(self) -> int:
        return self.text_tokens + self.image_tokens

    def places(self) -> np.ndarray:
        """(image_tokens, width) fp32 sines and cosines of each image token's row and column."""
        rates = 10_000.0 ** (-np.arange(self.width // 4) / (self.width // 4))
        places = np.stack(np.divmod(np.arange(self.image_tokens), self.grid), -1)
        angles = places[..., None] * rates
        waves = np.concatenate([np.sin(angles), np.cos(angles)], -1)
        return waves.reshape(self.image_tokens, self.width).astype(np.float32)

    def tokens(self) -> np.ndarray:
        """(rows, text_tokens) int32."""
        draw = np.random.default_rng(0).integers(8, self.vocab_size, (self.rows, self.text_tokens))
        return draw.astype(np.int32)

    def latents(self) -> np.ndarray:
        """(rows, image_tokens, latent_dim) fp32, normalised."""
        shape = (self.rows, self.image_tokens, self.latent_dim)
        return np.random.default_rng(1).standard_normal(shape, np.float32)

    def visible(self) -> np.ndarray:
        """(slots, slots) bool: which slots each slot sees."""
        mask = np.tril(np.ones((self.slots, self.slots), bool))
        mask[self.text_tokens :, self.text_tokens :] = True
        return mask
