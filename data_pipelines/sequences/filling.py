"""Filling rows: the slots that `packing.assign` leaves free get further documents of the mixture.

A window owns a fixed number of documents, small enough that nearly always all of them fit; where
lengths vary, rows stay a quarter empty. Further documents come from a second order of the same
records, of which each window has its own block. So rows remain a pure function of (seed, window),
and the order of the window's own documents does not change. Further documents are placed whole
while they fit. Once several did not fit anywhere, only texts are added, cut at the end of a row:
any prefix of a text can be learned from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from data_pipelines.sequences.document import Document, first_slots
from data_pipelines.sequences.mixture import BLOCK, DocumentStream
from data_pipelines.sequences.packing import Size, less, tightest

LEAST = 16  # free slots needed to add a text
MISSES = 3  # documents that fit nowhere before only texts are tried


class Further(NamedTuple):
    """A document added to fill a row, and its index in the order of further documents."""

    index: int
    document: Document


def further_documents(
    free: Sequence[Size],
    stream: DocumentStream,
    window: int,
    counts: Counter,
) -> list[list[Further]]:
    """The further documents for each row of a window.

    Args:
      free: what each row can still hold.
      stream: the further documents; a window reads a prefix of its own block of them.
      counts: updated with the documents skipped and, as `further`, the number placed.
    """
    rows: list[list[Further]] = [[] for _ in free]
    free, misses, mixture = list(free), 0, stream.mixture
    texts = {number for number, entry in enumerate(mixture.entries) if entry.task == "text"}
    for index in range(window * BLOCK, (window + 1) * BLOCK):
        if max(slots for slots, *_ in free) < LEAST or misses >= MISSES and not texts:
            break
        entry = mixture.pick(index).entry
        if misses >= MISSES and entry not in texts:
            continue
        document, skipped = stream.document(index)
        counts.update(skipped)
        row = tightest(free, document.size)
        if row is None and not document.grids:  # words alone
            row = max(range(len(free)), key=lambda r: free[r])
            document = first_slots(document, free[row][0])
            texts.add(entry)
        if row is None or not document.predicted:
            misses += 1
            texts.discard(entry)
            continue
        rows[row].append(Further(index, document))
        free[row] = less(free[row], document.size)
    counts["further"] += sum(map(len, rows))
    return rows
