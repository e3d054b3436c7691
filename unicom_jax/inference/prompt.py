"""Prompts to device batches: prefixes of different lengths in rows of one length."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from data_pipelines.sequences.packing import PackingConfig, pack_row, stack_rows
from data_pipelines.sequences.sequence import Document, SequenceConfig, Slots, drawing_slots
from unicom_jax.core.batch import MaskIntervals, MixedBatch

SLOT_BUCKET = 32  # prefix lengths are rounded up to this, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Prefixes:
    """B prefixes in rows of S slots.

    Attributes:
      batch: the rows, padded.
      lengths: slots in use.
      next_positions: rotary index of what follows.
    """

    batch: MixedBatch
    lengths: Int32[np.ndarray, " B"]
    next_positions: Int32[np.ndarray, " B"]

    @property
    def slots(self) -> int:
        return self.batch.tokens.shape[1]


def round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def collate(documents: Sequence[Document], sequence: SequenceConfig) -> Prefixes:
    """One prefix a row; rows are as long as the longest, rounded up to `SLOT_BUCKET`."""
    slots = round_up(max(len(document) for document in documents), SLOT_BUCKET)
    images = max(1, *(len(document.grids) for document in documents))
    packing = PackingConfig(slots=slots, images=images, window_rows=1)
    rows = [pack_row([document], packing, sequence) for document in documents]
    return Prefixes(
        batch=stack_rows(rows),
        lengths=np.array([len(document) for document in documents], np.int32),
        next_positions=np.array([document.next_position for document in documents], np.int32),
    )


def image_slots(prefixes: Prefixes, rows: int, cols: int) -> Slots:
    """Positions (B, N, 2) and mask (B, N) of an image of rows x cols tokens behind each prefix."""
    slots = [
        drawing_slots(int(length), int(position), rows, cols, slot=prefixes.slots)
        for length, position in zip(prefixes.lengths, prefixes.next_positions, strict=True)
    ]
    masks = [dataclasses.astuple(one.mask) for one in slots]
    fields = (np.stack([mask[i] for mask in masks]) for i in range(4))
    return Slots(np.stack([one.positions for one in slots]), MaskIntervals(*fields))
