"""Batches of packed rows, a pure function of (seed, step), made ahead of the training loop.

Grain runs the pipeline (step -> windows -> documents -> rows -> batch) in threads or in worker
processes. The whole state is `next_index`, the next step. A global batch is `rows` rows in a fixed
order, and each training process makes its share of them, so neither the number of training
processes nor the number of workers changes what is trained on.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import re
import signal
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import grain
from absl import flags

from data_pipelines.loading import workers
from data_pipelines.sequences.document import Document
from data_pipelines.sequences.filling import further_documents
from data_pipelines.sequences.mixture import DocumentStream
from data_pipelines.sequences.packing import (
    assign,
    balanced,
    documents_per_window,
    less,
    pack_rows,
)
from unicom_jax.core.batch import MixedBatch

Batch = TypeVar("Batch")
STEPS = 2**62  # the stream has no end
PROBES = 384  # documents read to choose how many a window gets
RESTARTS = 3  # of the workers for one batch, before the batch itself is blamed
FEWEST = 1000  # documents, at least, of which the share of unreadable ones is taken
DEATH = re.compile(r"terminated unexpectedly with exit code (-?\d+)")  # what Grain says of it
LOG = logging.getLogger(__name__)


class LoaderError(Exception):
    """Batches can no longer be made. The message, one line, names the cause and the fix."""


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """How batches are made and fetched.

    Attributes:
      rows: rows (or examples) of a global batch.
      share: the rows of the global batch that this process makes, ascending; None: all.
      threads: threads that make batches, when `workers` is 0.
      prefetch: batches made ahead.
      workers: processes that make batches, for which the source must be picklable; 0: threads.
      max_unreadable: share that may be unreadable of the records seen, or of FEWEST records while
        fewer were seen; 1: no limit.
    """

    rows: int
    share: tuple[int, ...] | None = None
    threads: int = 2
    prefetch: int = 4
    workers: int = 0
    max_unreadable: float = 1.0

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"a batch needs at least 1 row, not {self.rows}")
        if outside := set(self.own_rows) - set(range(self.rows)):
            raise ValueError(f"row {min(outside)} is not one of {self.rows}; count rows from 0")

    @property
    def own_rows(self) -> tuple[int, ...]:
        return tuple(range(self.rows)) if self.share is None else self.share


class Loader(Generic[Batch]):
    """An endless iterator over batches that can be stopped and resumed at any step.

    Attributes:
      next_index: the step of the next batch. It is the whole state.
      counts: what happened to the documents of the batches handed out since the start or the last
        `set_state`: documents, slots (used), room (all slots), left_over, unreadable, broken,
        overlong, further (those that fill rows up); for the documents used, task/TASK, source/NAME
        and source_slots/NAME (`Mixture.tally`); and restarts (of worker processes).

    When a worker process dies, all workers are restarted at the step whose batch is next.

    Raises:
      LoaderError: on `next`, when workers die again and again, or too many records are unreadable.
    """

    def __init__(
        self, make: Callable[[int], tuple[Batch, Counter]], config: LoaderConfig, start: int = 0
    ) -> None:
        self._make, self._config = make, config
        self._iterator: grain.DatasetIterator | None = None
        self.set_state({"next_index": start})

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch, counts = self._next_made()
        self.counts.update(counts)
        self.next_index += 1
        self._check_readable()
        return batch

    def _next_made(self) -> tuple[Batch, Counter]:
        for deaths in itertools.count(1):
            if self._iterator is None:
                self._iterator, self._opened_at = self._open(), self.next_index
            try:
                return next(self._iterator)
            except RuntimeError as error:
                death = DEATH.search(str(error)) if self._config.workers else None
                if death is None:
                    raise
                self._bury(int(death[1]), deaths)

    def _bury(self, exit_code: int, deaths: int) -> None:
        """Ends all workers after one of them died, so that the next batch restarts them."""
        count = self._config.workers
        worker = (self.next_index - self._opened_at) % count  # they take turns
        how = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
        what = f"data worker {worker} of {count} died ({how}) before the batch of step"
        self.close()
        if deaths > RESTARTS:
            raise LoaderError(
                f"{what} {self.next_index}, {deaths} times in a row: if memory runs out, lower "
                "--config.data.workers, prefetch or cache_mb; --config.data.workers=0 shows other "
                "causes"
            )
        self.counts["restarts"] += 1
        LOG.warning("%s %d; the workers start again there", what, self.next_index)

    def _check_readable(self) -> None:
        share, unreadable = self._config.max_unreadable, self.counts["unreadable"]
        seen = unreadable + self.counts["documents"]
        if unreadable > share * max(seen, FEWEST):
            raise LoaderError(
                f"{unreadable} of {seen} records could not be read up to step {self.next_index}, "
                f"more than data.max_unreadable={share} allows: repair the files named above, or "
                "raise it"
            )

    def get_state(self) -> dict[str, int]:
        return {"next_index": self.next_index}

    def set_state(self, state: dict[str, int]) -> None:
        """Continues with the batch of step `state["next_index"]`."""
        self.close()
        self.next_index = int(state["next_index"])
        self.counts: Counter = Counter()

    def close(self) -> None:
        """Ends the threads or workers. A later `next` restarts them at the same step."""
        if self._iterator is not None:
            self._closing()
            self._iterator = None

    def at(self, step: int) -> Batch:
        """The batch of a step, made synchronously in this process."""
        return self.made(step)[0]

    def made(self, step: int) -> tuple[Batch, Counter]:
        """The batch of a step and what happened to its documents, as in `counts`."""
        return self._make(step)

    def _open(self) -> grain.DatasetIterator:
        config = self._config
        steps = grain.MapDataset.range(self.next_index, STEPS).map(self._make)
        # Both are closed at exit too: threads and shared memory go before the interpreter does.
        if not config.workers:
            options = grain.ReadOptions(config.threads, config.prefetch)
            iterator = iter(steps.to_iter_dataset(options))
            self._closing = weakref.finalize(self, iterator.close)
            return iterator
        if not flags.FLAGS.is_parsed():  # Grain's workers inherit absl flags
            flags.FLAGS.mark_as_parsed()
        each = max(1, config.prefetch // config.workers)
        dataset = steps.to_iter_dataset(grain.ReadOptions(1, each))
        processes = grain.MultiprocessingOptions(config.workers, each)
        folder = workers.new_folder()
        begin = functools.partial(workers.begin_worker, folder)
        iterator = iter(dataset.mp_prefetch(processes, worker_init_fn=begin))
        self._closing = weakref.finalize(self, workers.end_workers, iterator.close, folder)
        return iterator


@dataclasses.dataclass(frozen=True)
class PackedBatches:
    """Maps a step to this process's part of a global batch of packed rows.

    A window is always packed as a whole, even if other processes use some of its rows.
    """

    stream: DocumentStream
    config: LoaderConfig
    window_documents: int

    @functools.cached_property
    def _further(self) -> DocumentStream:
        return dataclasses.replace(self.stream, mixture=self.stream.mixture.again())

    def __call__(self, step: int) -> tuple[MixedBatch, Counter]:
        rows: list[list[Document]] = []
        counts: Counter = Counter()
        window_rows = self.stream.packing.window_rows
        first = step * (self.config.rows // window_rows)
        windows = itertools.groupby(self.config.own_rows, lambda row: row // window_rows)
        for window, wanted in windows:
            made = self._window(first + window, counts)
            rows += [made[row % window_rows] for row in wanted]
        return pack_rows(rows, self.stream.packing, self.stream.sequence), counts

    def _window(self, window: int, counts: Counter) -> list[list[Document]]:
        """The documents of each row of a window."""
        documents = []
        for index in range(self.window_documents):
            document, skipped = self.stream.document(window * self.window_documents + index)
            documents.append(document)
            counts.update(skipped)
        packing = self.stream.packing
        places, left_over = assign([d.size for d in documents], packing)
        rows = [[documents[i] for i in row] for row in places]
        first = window * self.window_documents
        used = [(first + i, len(documents[i])) for row in places for i in row]
        counts.update(self.stream.mixture.tally(used))
        if packing.fill:
            free = [functools.reduce(less, (d.size for d in row), packing.room) for row in rows]
            further = further_documents(free, self._further, window, counts)
            rows = [[*row, *(d for _, d in more)] for row, more in zip(rows, further, strict=True)]
            used = [(index, len(d)) for more in further for index, d in more]
            counts.update(self._further.mixture.tally(used))
        if packing.balance:
            order = balanced([sum(d.predicted for d in row) for row in rows])
            rows = [rows[place] for place in order]
        packed = [document for row in rows for document in row]
        counts.update(documents=len(packed), slots=sum(map(len, packed)), left_over=len(left_over))
        counts.update(room=packing.window_rows * packing.slots)
        return rows


def make_loader(
    stream: DocumentStream,
    config: LoaderConfig,
    *,
    start: int = 0,
    window_documents: int,
) -> Loader[MixedBatch]:
    """The training loader of the unified stage.

    Args:
      stream: the documents.
      config: batch size, this process's share, and the workers.
      start: the first step.
      window_documents: documents of a window; `choose_window_documents` measures it.

    Raises:
      ValueError: a batch is not a whole number of windows.
    """
    window = stream.packing.window_rows
    if config.rows % window:
        raise ValueError(
            f"a batch of {config.rows} rows is not a multiple of packing.window_rows {window}; "
            "set window_rows to a divisor"
        )
    return Loader(PackedBatches(stream, config, window_documents), config, start)


def choose_window_documents(stream: DocumentStream) -> int:
    """How many documents a window gets, measured on the first few hundred of the stream."""
    probes = [stream.document(index)[0] for index in range(PROBES)]
    return documents_per_window([document.size for document in probes], stream.packing)
