"""`Document`: a sequence of words and pictures as NumPy arrays, slot by slot."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import numpy as np

from unicom_jax.core.batch import MaskIntervals, Role
from unicom_jax.core.positions import image_positions

MASK_FIELDS = tuple(field.name for field in dataclasses.fields(MaskIntervals))


@dataclasses.dataclass(frozen=True)
class Document:
    """One training document, or the prefix of an answer: L slots without padding.

    Attributes:
      key: the example it comes from.
      tokens, roles, image_index, image_token, targets: (L,) int32.
      target_weights: (L,) float32.
      positions: (L, 2) int32 (y, x).
      mask: intervals (L,) int32, counted in slots of this document.
      draws: the image of each noisy copy; `image_index` of NOISY slots is an index into these.
      patches: per image, (rows * cols, patch * patch * 3) uint8.
      grids: per image, (rows, cols) of patches.
      next_position: the rotary index that a token after the document would have.
      part: the number of its source and task in its mixture.
    """

    key: str
    tokens: np.ndarray
    roles: np.ndarray
    positions: np.ndarray
    image_index: np.ndarray
    image_token: np.ndarray
    targets: np.ndarray
    target_weights: np.ndarray
    mask: MaskIntervals
    patches: tuple[np.ndarray, ...]
    grids: tuple[tuple[int, int], ...]
    draws: tuple[int, ...]
    next_position: int
    part: int = 0

    def __len__(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def size(self) -> tuple[int, int, int, int]:
        """(slots, images, draws, views): what the document takes up in a row.

        A view is a draw, or an image that is read from the row itself.
        """
        draws = len(self.draws)
        if not self.grids:
            return len(self.tokens), 0, draws, draws
        read = self.image_index[(self.roles == Role.UNDERSTAND) | (self.roles == Role.CLEAN)]
        return len(self.tokens), len(self.grids), draws, draws + len(set(read.tolist()))

    @property
    def predicted(self) -> int:
        """Slots that predict a token."""
        return int(np.count_nonzero(self.target_weights))


def first_slots(document: Document, count: int) -> Document:
    """The beginning of a document of words alone. Its last slot predicts the token that follows."""
    cut = {
        name: getattr(document, name)[:count]
        for name in ("tokens", "roles", "positions", "image_index", "image_token", "targets")
    }
    mask = MaskIntervals(*(getattr(document.mask, name)[:count] for name in MASK_FIELDS))
    weights = document.target_weights[:count]
    return dataclasses.replace(document, **cut, target_weights=weights, mask=mask)


class Slots(NamedTuple):
    """Positions (n, 2) and mask intervals (n,) of slots to be appended to a prefix."""

    positions: np.ndarray
    mask: MaskIntervals


def drawing_slots(
    context: int,
    position: int,
    rows: int,
    cols: int,
    slot: int | None = None,
    kind: str = "grid",
) -> Slots:
    """The positions of the NOISY tokens of an image to be drawn, and what they see.

    Args:
      context: the image sees the slots [0, context): all that precedes its place, including
        `<|vision_start|>`.
      position: rotary index of its place: `next_position` of a prefix that ends with
        `<|vision_start|>`.
      rows, cols: its token grid.
      slot: its first slot; `context` unless padding or a later text comes between.
      kind: that of its positions, `SequenceConfig.image_positions`.
    """
    count = rows * cols
    slot = context if slot is None else slot
    return Slots(
        image_positions(position, rows, cols, kind),
        MaskIntervals(
            _fill(count, 0), _fill(count, context), _fill(count, slot), _fill(count, slot + count)
        ),
    )


def _fill(count: int, value: int) -> np.ndarray:
    return np.full(count, value, np.int32)
