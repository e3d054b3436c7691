"""Packs documents into rows, inside fixed windows.

A window is a fixed range of documents and a fixed number of rows. Window w owns the documents
[w * D, (w + 1) * D) of the stream, so its rows are a pure function of (seed, w): nothing is carried
over from the previous window, windows can be built in any order, and resuming needs no buffer.

Best-fit decreasing (Johnson 1974): the documents, longest first, each go into the fullest row that
still has enough slots and enough places for images and draws. A document that fits nowhere is left
over: it is returned and counted, never dropped silently. Because the longest are placed first, only
short documents are left over, and `documents_per_window` chooses the documents per window such that
fewer than one in 500 are. The alternatives are worse here: rows that stop at the first document
that does not fit lose long documents more often than short ones and so distort the mixture; a
stream that carries documents over must be replayed on resume, and by every host.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipelines.sequences.document import MASK_FIELDS, Document
from data_pipelines.sequences.format import SequenceConfig
from unicom_jax.core.batch import MaskIntervals, MixedBatch, Role

Size = tuple[int, int, int, int]  # slots, images, draws and views of a document or a row
SAFE = 2.5  # standard deviations of a window's slots that must fit too when rows are filled up
SLOT_NUMBERS = ("tokens", "roles", "targets", "image_token")
PER_SLOT = (*SLOT_NUMBERS, "positions", "target_weights")
MORE = ("image_index", "parts")  # fields of slots, too, but not copied unchanged from the document


class OverlongDocument(ValueError):
    """A document that fits into no row. The message names the example, the limit and the fix."""


@dataclasses.dataclass(frozen=True)
class PackingConfig:
    """The shape of packed rows.

    Attributes:
      slots: S, the slots of a row.
      images: M, the most images in a row.
      window_rows: rows of a window. More rows pack better; a batch is a whole number of windows.
      draws: D, the most draws (noisy copies of images) in a row; 0: the same as images.
      views: the most draws plus read images in a row; 0: as many as images and draws together.
      balance: order the rows of a window by `balanced`; otherwise as `assign` returns them.
      fill: fill the free slots of rows (`sequences.filling`).
    """

    slots: int
    images: int
    window_rows: int = 8
    draws: int = 0
    balance: bool = False
    fill: bool = False
    views: int = 0

    def __post_init__(self) -> None:
        least_of = {"slots": 1, "images": 1, "window_rows": 1, "draws": 0, "views": 0}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise ValueError(f"packing {name} must be at least {least}")

    @property
    def room(self) -> Size:
        """What an empty row can hold."""
        draws = self.draws or self.images
        return self.slots, self.images, draws, self.views or self.images + draws


def check_fits(document: Document, config: PackingConfig) -> None:
    """Raises OverlongDocument if `document` would not fit even into an empty row."""
    what = ("slots", "images", "draws", "views")
    keys = ("sequence_length", "images_per_row", "draws_per_row", "views_per_row")
    for name, size, limit, key in zip(what, document.size, config.room, keys, strict=True):
        if size > limit:
            raise OverlongDocument(
                f"example {document.key!r} takes {size} {name}, but a row holds at most {limit}; "
                f"raise {key}, shorten the example, or set overlong='skip'"
            )


def assign(sizes: Sequence[Size], config: PackingConfig) -> tuple[list[list[int]], list[int]]:
    """Places documents into the rows of one window.

    Returns:
      (rows, left over): for each of the `window_rows` rows the indices of its documents, ascending;
      and the indices of the documents that fit nowhere.
    """
    rows: list[list[int]] = [[] for _ in range(config.window_rows)]
    free = [config.room] * config.window_rows
    left_over = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i][0], i)):
        row = tightest(free, sizes[index])
        if row is None:
            left_over.append(index)
            continue
        rows[row].append(index)
        free[row] = less(free[row], sizes[index])
    return [sorted(row) for row in rows], sorted(left_over)


def tightest(free: Sequence[Size], size: Size) -> int | None:
    """The row with the least free space that still fits a document; None: it fits nowhere."""
    fitting = [
        row
        for row, room in enumerate(free)
        if all(need <= have for need, have in zip(size, room, strict=True))
    ]
    return min(fitting, key=lambda row: (free[row], row), default=None)


def less(room: Size, size: Size) -> Size:
    """What a row can still hold after a document was added."""
    slots, images, draws, views = (have - need for have, need in zip(room, size, strict=True))
    return slots, images, draws, views


def balanced(work: Sequence[int]) -> list[int]:
    """An order of rows in which all aligned runs of 2, 4, 8, ... rows have about equal work.

    Devices hold equal consecutive runs of a batch, and the one with the most work decides how long
    a step takes. The heaviest row is paired with the lightest, the second heaviest with the second
    lightest; then pairs are paired, and so on (longest-processing-time, folded). So one order
    serves every number of devices, whichever rows a host makes. The heavier of each pair comes
    first, so the parts of an accumulated batch, every p-th row, are balanced over devices as well.

    Args:
      work: the work of each row, such as its slots that predict a token, since logits are computed
        only for these (`core.losses.text_terms`).

    Returns:
      A permutation of range(len(work)). The middle one of an odd number of runs comes last.
    """
    runs, rest = [[row] for row in range(len(work))], []
    while len(runs) > 1:
        runs.sort(key=lambda run: (-sum(work[row] for row in run), run))
        half, odd = divmod(len(runs), 2)
        if odd:
            rest = runs.pop(half) + rest
        runs = [a + b for a, b in zip(runs[:half], reversed(runs[half:]), strict=True)]
    return [*itertools.chain(*runs), *rest]


def documents_per_window(
    sizes: Sequence[Size], config: PackingConfig, tolerance: float = 0.002
) -> int:
    """The largest number of documents per window at which few are left over.

    Args:
      sizes: those of the stream's first few hundred documents, in order: the mixture spreads the
        tasks evenly, so a run of documents varies less than a random draw.
      tolerance: the largest share of documents that may be left over.
    """
    if not sizes:
        raise ValueError(
            "the number of documents in a window is chosen from a sample, and the sample is empty"
        )

    def left_over(count: int) -> float:
        starts = range(0, len(sizes), max(1, len(sizes) // 32))
        runs = [[sizes[(start + i) % len(sizes)] for i in range(count)] for start in starts]
        return sum(len(assign(run, config)[1]) for run in runs) / (count * len(runs))

    def last(good: Callable[[int], bool], stop: int) -> int:
        low = 1  # one document always fits
        while stop - low > 1:
            middle = (low + stop) // 2
            low, stop = (middle, stop) if good(middle) else (low, middle)
        return low

    shortest = max(1, min(slots for slots, *_ in sizes))
    most = config.window_rows * config.slots // shortest + 2
    if config.fill:  # exceeding the safe number gains nothing
        mean, deviation = np.mean(sizes, axis=0)[0], np.std(sizes, axis=0)[0]
        room = config.window_rows * config.slots
        most = last(lambda n: n * mean + SAFE * deviation * n**0.5 <= room, most) + 1
    return last(lambda n: left_over(n) <= tolerance, most)


def pack_row(
    documents: Sequence[Document], config: PackingConfig, sequence: SequenceConfig
) -> MixedBatch:
    """One row of `pack_rows`; fields without the batch axis."""
    return row_of(pack_rows([documents], config, sequence), 0)


def pack_rows(
    rows: Sequence[Sequence[Document]], config: PackingConfig, sequence: SequenceConfig
) -> MixedBatch:
    """Packs documents back to back into rows, followed by padding.

    Mask intervals and image indices are shifted by the document's offset; positions are not, since
    only differences of rotary positions matter.
    """
    shape, pictures = (len(rows), config.slots), (len(rows), config.images)
    size = sequence.max_patches, 3 * sequence.patch**2
    batch = MixedBatch(
        mask=MaskIntervals(*(np.zeros(shape, np.int32) for _ in MASK_FIELDS)),
        patches=np.zeros((*pictures, *size), np.uint8),
        grids=np.zeros((*pictures, 2), np.int32),
        draws=np.full((len(rows), config.room[2]), -1, np.int32),
        positions=np.zeros((*shape, 2), np.int32),
        target_weights=np.zeros(shape, np.float32),
        **{name: np.zeros(shape, np.int32) for name in (*SLOT_NUMBERS, *MORE)},
    )
    for number, documents in enumerate(rows):
        _write(documents, row_of(batch, number))
    return batch


def _write(documents: Sequence[Document], row: MixedBatch) -> None:
    """Fills the arrays of an empty row."""
    start = image = draw = 0
    for document in documents:
        here = slice(start, start + len(document))
        for name in PER_SLOT:
            getattr(row, name)[here] = getattr(document, name)
        if document.grids:
            read = np.where(document.roles > Role.TEXT, image, 0)
            first = np.where(document.roles == Role.NOISY, draw, read)
            row.image_index[here] = document.image_index + first
        row.parts[here] = document.part
        drawn = slice(draw, draw + len(document.draws))
        row.draws[drawn] = np.array(document.draws, np.int32) + image
        draw = drawn.stop
        starts, stops, spans, ends = (getattr(document.mask, name) for name in MASK_FIELDS)
        row.mask.context_start[here], row.mask.context_stop[here] = starts + start, stops + start
        offset = np.where(ends > spans, start, 0)  # empty spans stay (0, 0)
        row.mask.span_start[here], row.mask.span_stop[here] = spans + offset, ends + offset
        for cut, grid in zip(document.patches, document.grids, strict=True):
            row.patches[image, : len(cut)], row.grids[image] = cut, grid
            image += 1
        start += len(document)


def row_of(batch: MixedBatch, number: int) -> MixedBatch:
    """A row of a batch, as views."""

    def row(value: object) -> object:
        if value is None:
            return None
        return _mapped(row, value) if dataclasses.is_dataclass(value) else value[number]

    return _mapped(row, batch)


def _mapped(function: Callable[[object], object], node: Any) -> Any:
    fields = dataclasses.fields(node)
    return type(node)(**{one.name: function(getattr(node, one.name)) for one in fields})


def stack_rows(rows: Sequence[MixedBatch]) -> MixedBatch:
    """Rows to a batch: every field gets a leading axis B."""

    def stack(parts: Sequence[object]) -> object:
        names = [field.name for field in dataclasses.fields(parts[0])]
        columns = {name: [getattr(part, name) for part in parts] for name in names}
        return type(parts[0])(**{name: join(column) for name, column in columns.items()})

    def join(column: list) -> object:
        if column[0] is None:
            return None
        return stack(column) if dataclasses.is_dataclass(column[0]) else np.stack(column)

    return stack(rows)
