"""The interface of a model that can be evaluated; `inference.generator.Generator` implements it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float32

from unicom_jax.core.picture import Picture


class Drawn(Protocol):
    """A picture drawn from a prompt."""

    @property
    def image(self) -> Picture: ...


class Encoder(Protocol):
    """The encoder alone, which measures pictures."""

    @property
    def fingerprint(self) -> str:
        """A hash of its weights: numbers that other encoders measured cannot be compared."""

    def features(self, images: Sequence[Picture]) -> Float32[np.ndarray, "pictures F"]:
        """The encoder's pooled features."""


class UnifiedModel(Protocol):
    """Every method takes a list and keeps its order.

    `encoder`: the one that it was trained with; None: there is none.
    `without_details`: the same model with a head that adds no details; None if it never adds any.

    All random choices follow from `seed` and an item's place (its index in the list plus `first`),
    so they do not depend on how many items a call gets.
    """

    @property
    def encoder(self) -> Encoder | None: ...

    @property
    def without_details(self) -> UnifiedModel | None: ...

    def answer(
        self,
        images: Sequence[Picture],
        questions: Sequence[str],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        first: int,
    ) -> list[str]:
        """One answer per picture and question; temperature 0 is greedy."""

    def caption(
        self,
        images: Sequence[Picture],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        first: int,
    ) -> list[str]:
        """One caption per picture."""

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
        grid: str,
        seed: int,
        first: int,
    ) -> Sequence[Drawn]:
        """One picture of `size` = (height, width) per prompt."""

    def edit(
        self,
        images: Sequence[Picture],
        instructions: Sequence[str],
        *,
        steps: int,
        guidance: float,
        guidance_interval: tuple[float, float],
        sampler: str,
        grid: str,
        edit_start: float,
        seed: int,
        first: int,
    ) -> Sequence[Picture]:
        """One edited picture per picture and instruction, at the size of the `prepared` source."""

    def reconstruct(self, images: Sequence[Picture], *, seed: int, first: int) -> Sequence[Picture]:
        """The codec alone: pictures to its latents and back, at the size of `prepared`."""

    def prepared(self, image: Picture) -> Picture:
        """The picture as the model sees it: resized under the image policy."""
