"""From prompts to device batches: prefixes of different lengths in rows of the same length."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, UInt8

from data_pipelines.sequences.document import Document, Slots, drawing_slots
from data_pipelines.sequences.format import SequenceConfig
from data_pipelines.sequences.packing import PackingConfig, pack_rows
from unicom_jax.core.batch import MaskIntervals, MixedBatch

LEAST_SLOTS = 32  # of a bucket
WHOLE_OCTAVES = 256  # up to here buckets are powers of two, then there are four per octave


@dataclasses.dataclass(frozen=True)
class Prefixes:
    """B prefixes in rows of S slots, for R requests with the same number of rows each.

    The rows of a request (its branches under guidance) are adjacent. They show the same pictures or
    none, so pictures are stored, and encoded, once per request.

    Attributes:
      batch: the rows, padded; without patches.
      lengths: slots in use.
      next_positions: rotary index of what follows.
      patches: those of the pictures of each request; None if no row has a picture.
    """

    batch: MixedBatch
    lengths: Int32[np.ndarray, " B"]
    next_positions: Int32[np.ndarray, " B"]
    patches: UInt8[np.ndarray, "R M N C"] | None

    @property
    def slots(self) -> int:
        return self.batch.tokens.shape[1]


def bucket(slots: int) -> int:
    """`slots` rounded up to one of a few lengths, so that few programs are compiled.

    The cost of a program grows with the length of its rows, so buckets are closer together for long
    rows, of which at most a quarter is padding.
    """
    octave = 1 << max(slots - 1, 0).bit_length()
    step = octave if octave <= WHOLE_OCTAVES else octave // 8
    return max(-(-slots // step) * step, LEAST_SLOTS)


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`."""
    return 1 << max(count - 1, 0).bit_length()


def collate(documents: Sequence[Document], sequence: SequenceConfig, branches: int = 1) -> Prefixes:
    """One prefix per row; rows are as long as the `bucket` of the longest prefix.

    Args:
      documents: `branches` adjacent ones per request, the first of which has all its pictures.
    """
    images = power_of_two(max(1, *(len(document.grids) for document in documents)))
    packing = PackingConfig(slots=bucket(max(map(len, documents))), images=images, window_rows=1)
    batch = pack_rows([[document] for document in documents], packing, sequence)
    pictured = any(document.grids for document in documents)
    return Prefixes(
        batch=batch.replace(patches=None),
        lengths=np.array([len(document) for document in documents], np.int32),
        next_positions=np.array([document.next_position for document in documents], np.int32),
        patches=batch.patches[::branches] if pictured else None,
    )


def image_slots(
    lengths: Int32[np.ndarray, " B"],
    next_positions: Int32[np.ndarray, " B"],
    grids: Int32[np.ndarray, "R 2"],
    tokens: int,
    start: int,
    kind: str,
) -> Slots:
    """Positions (B, tokens, 2) and mask (B, tokens) of an image to be drawn after each prefix.

    Args:
      lengths, next_positions: as in `Prefixes`, B / R rows per request. `start`: the first slot.
      grids: token rows and columns of each request's image. Slots after its last token see
        nothing and are not seen.
      kind: that of the positions, `SequenceConfig.image_positions`.
    """
    slots = [
        drawing_slots(int(length), int(position), int(rows), int(cols), start, kind)
        for length, position, (rows, cols) in zip(
            lengths, next_positions, grids.repeat(len(lengths) // len(grids), axis=0), strict=True
        )
    ]
    masks = [dataclasses.astuple(one.mask) for one in slots]
    fields = (np.stack([_filled(mask[i], tokens) for mask in masks]) for i in range(4))
    positions = np.stack([_filled(one.positions, tokens) for one in slots])
    return Slots(positions, MaskIntervals(*fields))


def _filled(values: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(values, ((0, rows - len(values)), *[(0, 0)] * (values.ndim - 1)))
