"""Checks what a user passes, one item or a list of them, and returns lists of equal length."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image as PilImage

from data_pipelines.decoding import to_srgb
from data_pipelines.segments import Image, Segment, Text
from unicom_jax.core.picture import Picture

Conversation = str | Sequence[Segment]


def as_texts(texts: Any, what: str = "prompt") -> list[str]:
    """A list of texts; one string is one text.

    Raises:
      ValueError: one of them is not a string.
    """
    listed = [texts] if isinstance(texts, str) else list(texts)
    for place, text in enumerate(listed):
        if not isinstance(text, str):
            raise ValueError(f"{what} {place} is a {type(text).__name__}; give a string")
    return listed


def as_pictures(images: Any) -> list[Picture]:
    """A list of pictures (H, W, 3) uint8. An array of three axes is one picture. Pillow images are
    converted to sRGB as in training (`decoding.to_srgb`).

    Raises:
      ValueError: one of them is neither.
    """
    if isinstance(images, str | bytes | os.PathLike | None):
        images = [images]
    listed = [images] if _is_single(images) else list(images)
    listed = [np.asarray(to_srgb(i)) if isinstance(i, PilImage.Image) else i for i in listed]
    for place, image in enumerate(listed):
        found = getattr(image, "shape", None), getattr(image, "dtype", type(image).__name__)
        if found[0] is None or len(found[0]) != 3 or found[0][2] != 3 or found[1] != np.uint8:
            raise ValueError(
                f"picture {place} must be a Pillow image or an array (height, width, 3) of uint8, "
                f"not {found[1]} {found[0] or ''}".rstrip()
            )
    return listed


def _is_single(images: Any) -> bool:
    """Whether this is one picture rather than several."""
    return isinstance(images, PilImage.Image) or (
        isinstance(images, np.ndarray) and images.ndim in (2, 3)
    )


def paired(images: Any, texts: Any, what: str) -> list[tuple[Picture, str]]:
    """Pairs picture i with text i. A single text or picture is paired with all of the others.

    Raises:
      ValueError: the numbers of pictures and texts differ.
    """
    pictures, words = as_pictures(images), as_texts(texts, what)
    if isinstance(texts, str):
        words = words * len(pictures)
    elif _is_single(images):
        pictures = pictures * len(words)
    if len(pictures) != len(words):
        raise ValueError(
            f"{len(pictures)} pictures but {len(words)} {what}s; give one {what} per picture, or "
            f"a single string for all of them"
        )
    return list(zip(pictures, words, strict=True))


def as_conversation(said: Any) -> list[Segment]:
    """The segments of one conversation; a string is a prompt.

    Raises:
      ValueError: something is not a segment.
    """
    segments = [Text(said)] if isinstance(said, str) else list(said)
    for segment in segments:
        if not isinstance(segment, Text | Image):
            raise ValueError(
                f"a conversation is made of Text and Image segments, not of {_name(segment)}"
            )
    return segments


def as_conversations(said: Any) -> list[list[Segment]]:
    """A list of conversations; a string or a list of segments is a single one.

    Raises:
      ValueError: as for `as_conversation`.
    """
    if isinstance(said, str) or (said and isinstance(said[0], Text | Image)):
        return [as_conversation(said)]
    return [as_conversation(one) for one in said]


def _name(value: Any) -> str:
    return type(value).__name__
