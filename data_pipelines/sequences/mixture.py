"""The stream of documents: which task comes when, on which examples, and what to do with bad ones.

Document i is a pure function of (seed, i). Tasks follow each other in blocks of 1000 documents in
which each has its share to the nearest thousandth, spread evenly (jittered stratification), so a
short run of documents has nearly the shares of the whole. Each task walks through the records that
can serve it, in an order that is shuffled anew every epoch, so that they are seen equally often.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np

from data_pipelines.examples import Example
from data_pipelines.sequences.dropout import build_training
from data_pipelines.sequences.format import SequenceConfig
from data_pipelines.sequences.packing import OverlongDocument, PackingConfig, check_fits
from data_pipelines.sequences.sequence import Document
from data_pipelines.sequences.tasks import TASKS, BrokenExample
from data_pipelines.sequences.tokenizer import Tokenizer
from data_pipelines.sources.broken import read_or_next
from data_pipelines.sources.chosen import records_with
from data_pipelines.sources.traits import traits_of_source

BLOCK = 1000
ATTEMPTS = 100  # bad examples in a row after which the source itself must be wrong
CHOICES = ("error", "skip")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One ingredient: a task, its weight, and the examples it reads (anything with len and [])."""

    task: str
    weight: float
    source: Sequence[Example]


class Pick(NamedTuple):
    """Which entry a document belongs to, and how many documents that entry had before."""

    entry: int
    ordinal: int


class Mixture:
    """Entries in proportion to their weights, in a seeded order with random access.

    Raises:
      ValueError: an unknown task, an empty source, a weight that is negative or too small to
        appear in a block; the message names the task.
    """

    def __init__(self, entries: Sequence[Entry], seed: int) -> None:
        self.seed = seed
        self.entries = tuple(entry for entry in entries if entry.weight != 0)
        for entry in self.entries:
            _check(entry)
        self.counts = _shares([entry.weight for entry in self.entries])
        for entry, count in zip(self.entries, self.counts, strict=True):
            if count == 0:
                raise ValueError(
                    f"task {entry.task!r} has less than 1 in {BLOCK} of the mixture's weight; "
                    "raise its weight or remove it"
                )
        self._orders = [
            grain.MapDataset.range(len(entry.source)).seed(seed + index).shuffle().repeat()
            for index, entry in enumerate(self.entries)
        ]

    def pick(self, index: int) -> Pick:
        block, offset = divmod(index, BLOCK)
        entries, before = _block(self.seed, self.counts, block)
        entry = int(entries[offset])
        return Pick(entry, block * self.counts[entry] + int(before[offset]))

    def examples(self, pick: Pick, shift: int = 0, skipped: Counter | None = None) -> list[Example]:
        """The examples of a document. `shift` moves on in the source, past one that is no good.

        Args:
          skipped: "unreadable" counts the records in whose place another was read; None: the first
            of them raises.

        Raises:
          RecordError: a record that cannot be read.
        """
        source, order = self.entries[pick.entry].source, self._orders[pick.entry]
        arity = TASKS[self.entries[pick.entry].task].arity
        places = [
            (int(order[pick.ordinal * arity + i]) + shift) % len(source) for i in range(arity)
        ]
        if skipped is None:
            return [source[place] for place in places]
        examples, passed = zip(*(read_or_next(source, place) for place in places), strict=True)
        if any(passed):
            skipped["unreadable"] += sum(passed)
        return list(examples)


def mixture_of(
    weights: Mapping[str, float],
    sources: Sequence[Example] | Mapping[str, Sequence[Example]],
    seed: int,
) -> Mixture:
    """The mixture of a table of task weights.

    Args:
      weights: task name to weight, such as {"text_to_image": 0.45, "text": 0.25}.
      sources: one source for all tasks, or one for each task by name. A task reads only the records
        that have what it needs, where the source knows them (`sources.traits`).

    Raises:
      ValueError: as `Mixture`, or a task whose source has no record for it.
    """
    if not isinstance(sources, Mapping):
        sources = dict.fromkeys(weights, sources)
    missing = [task for task in weights if task not in sources]
    if missing:
        raise ValueError(
            f"task {missing[0]!r} has no source; give one for each task of the mixture"
        )
    entries, known = [], {}  # traits by the identity of their source: finding them takes a while
    for task, weight in weights.items():
        source, needs = sources[task], TASKS[task].needs if task in TASKS and weight else ()
        if needs and id(source) not in known:
            known[id(source)] = traits_of_source(source)
        traits = known[id(source)] if needs else None
        entries.append(Entry(task, weight, _serving(task, source, needs, traits)))
    return Mixture(entries, seed)


def _serving(
    task: str, source: Sequence[Example], needs: tuple[str, ...], traits: np.ndarray | None
) -> Sequence[Example]:
    """The records of a source that can serve a task."""
    fit = source if traits is None else records_with(source, needs, traits)
    if len(source) and not len(fit):
        raise ValueError(
            f"no record of {source!r} has {' or '.join(needs)}, which the task {task!r} needs: add "
            "some, or set its weight in the mixture to 0"
        )
    return fit


@dataclasses.dataclass(frozen=True)
class DocumentStream:
    """Documents by index.

    Attributes:
      broken: "error" or "skip": what to do with an example that cannot be read or lacks what its
        task needs. A skipped one is replaced by the next of its source and counted, as "unreadable"
        or "broken".
      overlong: "error" or "skip": the same for a document that fits no row.
    """

    mixture: Mixture
    tokenizer: Tokenizer
    sequence: SequenceConfig
    packing: PackingConfig
    broken: str = "error"
    overlong: str = "error"

    def __post_init__(self) -> None:
        for name in ("broken", "overlong"):
            if getattr(self, name) not in CHOICES:
                raise ValueError(f"{name} {getattr(self, name)!r} is unknown; choose error or skip")

    def document(self, index: int) -> tuple[Document, Counter]:
        """Document `index`, and how many examples on the way to it were "unreadable", "broken" or
        "overlong".
        """
        pick, skipped = self.mixture.pick(index), Counter()
        for shift in range(ATTEMPTS):
            try:
                return self._build(pick, index, shift, skipped), skipped
            except OverlongDocument as error:
                if self.overlong == "error":
                    raise
                skipped["overlong"] += 1
                reason = error
            except BrokenExample as error:
                if self.broken == "error":
                    raise
                skipped["broken"] += 1
                reason = error
        task = self.mixture.entries[pick.entry].task
        raise ValueError(
            f"{ATTEMPTS} examples in a row cannot serve the task {task!r}, the last "
            f"because: {reason}"
        )

    def _build(self, pick: Pick, index: int, shift: int, skipped: Counter) -> Document:
        skip = self.broken == "skip"
        examples = self.mixture.examples(pick, shift, skipped if skip else None)
        task = TASKS[self.mixture.entries[pick.entry].task]
        rng = np.random.default_rng([self.mixture.seed, index, shift])
        segments = task.function(examples, rng)
        document = build_training(segments, self.tokenizer, self.sequence, rng, examples[0].key)
        check_fits(document, self.packing)
        return document


def _check(entry: Entry) -> None:
    if entry.task not in TASKS:
        raise ValueError(f"task {entry.task!r} is unknown; choose from {', '.join(TASKS)}")
    if not entry.weight > 0:
        raise ValueError(f"task {entry.task!r} has weight {entry.weight}; weights must be positive")
    if len(entry.source) == 0:
        raise ValueError(
            f"the source of task {entry.task!r} is empty; give it at least one example"
        )


@functools.lru_cache(maxsize=16)
def _block(seed: int, counts: tuple[int, ...], block: int) -> tuple[np.ndarray, np.ndarray]:
    """(entry, documents of that entry before in this block) for each document of a block."""
    rng = np.random.default_rng([seed, block])
    entries = np.repeat(np.arange(len(counts)), counts)
    before = np.concatenate([np.arange(count) for count in counts])
    place = (before + rng.random(BLOCK)) / np.asarray(counts)[entries]
    order = np.argsort(place, kind="stable")
    return entries[order], before[order]


def _shares(weights: Sequence[float]) -> tuple[int, ...]:
    """Largest-remainder apportionment of a block: a count for each entry; they sum to BLOCK."""
    if not weights:
        raise ValueError("the mixture is empty; give at least one task a positive weight")
    exact = np.asarray(weights) / sum(weights) * BLOCK
    counts = np.floor(exact).astype(np.int64)
    short = BLOCK - counts.sum()
    counts[np.argsort(counts - exact, kind="stable")[:short]] += 1
    return tuple(counts.tolist())
