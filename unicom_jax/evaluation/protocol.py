"""What a model must be able to do to be evaluated; `inference.generator.Generator` does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Drawn(Protocol):
    """A picture drawn from a prompt: `image` (H, W, 3) uint8."""

    @property
    def image(self) -> np.ndarray: ...


class UnifiedModel(Protocol):
    """Pictures in and out are (H, W, 3) uint8; every method takes a list and keeps its order."""

    def answer(
        self,
        images: Sequence[np.ndarray],
        questions: Sequence[str],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[str]:
        """One answer a picture and question; temperature 0 is greedy."""

    def caption(
        self, images: Sequence[np.ndarray], *, max_tokens: int, temperature: float, seed: int
    ) -> list[str]:
        """One caption a picture."""

    def draw(
        self,
        prompts: Sequence[str],
        *,
        size: tuple[int, int] | None,
        think: bool,
        steps: int,
        guidance: float,
        guidance_interval: tuple[float, float],
        sampler: str,
        seed: int,
    ) -> Sequence[Drawn]:
        """One picture of `size` = (height, width) a prompt."""

    def edit(
        self,
        images: Sequence[np.ndarray],
        instructions: Sequence[str],
        *,
        steps: int,
        guidance: float,
        guidance_interval: tuple[float, float],
        sampler: str,
        seed: int,
    ) -> Sequence[np.ndarray]:
        """One edited picture a picture and instruction, at the size of the `prepared` source."""

    def reconstruct(self, images: Sequence[np.ndarray], *, seed: int) -> Sequence[np.ndarray]:
        """The codec alone: encode, compress, decompress, paint; at the size of `prepared`."""

    def prepared(self, image: np.ndarray) -> np.ndarray:
        """The picture as the encoder sees it: resized under the image policy."""

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """The encoder's pooled features, (n, D)."""
