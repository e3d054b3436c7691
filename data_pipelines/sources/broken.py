"""Replaces and counts records that cannot be read."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sources.traits import traits_of_source

LOG = logging.getLogger(__name__)
LIMIT = 100  # consecutive broken records after which the source itself is at fault
NEIGHBOURS = 4  # neighbouring records tried before the search jumps ahead
PARTS = 16  # of a source; the search jumps ahead by one of them
NAMED = 3  # unreadable records of a source that a process names; the others are only counted

Record = TypeVar("Record")
_named: weakref.WeakKeyDictionary[Sequence, set[str]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def read_or_next(source: Sequence[Record], index: int, limit: int = LIMIT) -> tuple[Record, int]:
    """The record at `index`, or the one that takes its place, and how many were skipped.

    The next few records are tried first, then some further ahead, so that a missing file does not
    use up the tries. The replacement depends only on the index and on which records are readable.

    Raises:
      SourceError: `limit` records, or all of them, cannot be read.
    """
    size = len(source)
    tries = min(limit, size)
    for attempt in range(tries):
        try:
            return source[(index + _offset(attempt, size)) % size], attempt
        except RecordError as error:
            _tell(source, str(error))
            last = error
    which = f"{tries} records in a row" if tries < size else f"all {size} records of {source!r}"
    raise SourceError(f"{which} are broken, repair the data; the last: {last}")


def _offset(attempt: int, size: int) -> int:
    jump = size // PARTS if size > LIMIT else 0
    return attempt + attempt // NEIGHBOURS * jump


def _tell(source: Sequence, reason: str) -> None:
    with _lock:
        named = _named.setdefault(source, set())
        # The same file may be open in several sources, one for each task and for the tokenizer.
        if len(named) >= NAMED or any(reason in others for others in _named.values()):
            return
        named.add(reason)
        more = "; further ones are only counted" if len(named) == NAMED else ""
    LOG.warning("skipped: %s%s", reason, more)


class SkipBroken:
    """A source without its broken records: `read_or_next` at every index.

    The replacement depends on the index alone, so everything made from the records stays a pure
    function of the index, and later stages see no gaps.
    """

    def __init__(self, source: Sequence[Record], limit: int = LIMIT) -> None:
        self.source, self.limit = source, limit

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):  # else iteration would wrap around and never end
            raise IndexError(f"{self!r}: index {index} is not in [0, {len(self)})")
        return read_or_next(self.source, index, self.limit)[0]

    def traits(self) -> np.ndarray | None:
        return traits_of_source(self.source)

    def __repr__(self) -> str:
        return f"SkipBroken({self.source!r})"
