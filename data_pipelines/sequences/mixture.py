"""The stream of documents: the order of tasks, the records they read, and how bad ones are handled.

Document i is a pure function of (seed, i). Documents come in blocks of 1000, in which each task has
its share to the nearest thousandth, spread evenly (jittered stratification), so a short run of
documents has nearly the overall shares. Each task goes through the records that can serve it in an
order that is reshuffled every epoch, so that all are seen equally often.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import grain
import numpy as np

from data_pipelines.sequences.document import Document
from data_pipelines.sequences.dropout import build_training
from data_pipelines.sequences.format import SequenceConfig
from data_pipelines.sequences.packing import OverlongDocument, PackingConfig, check_fits
from data_pipelines.sequences.tasks import (
    TASKS,
    BrokenExample,
    Content,
    check_content,
    half_of,
    is_long_text,
)
from data_pipelines.sequences.tokenizer import Tokenizer
from data_pipelines.sources.broken import read_or_next
from data_pipelines.sources.cache import Looking
from data_pipelines.sources.chosen import records_with
from data_pipelines.sources.traits import may_lack, traits_of_source

LOG = logging.getLogger(__name__)
BLOCK = 1000
FURTHER = 7_919  # added to the seed for the order of further documents
ATTEMPTS = 100  # consecutive bad examples after which the source itself is at fault
CHOICES = ("error", "skip")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One ingredient: a task, its weight, and the records it reads (anything with len and []).

    `origin` is the name of their source if a mixture has several.
    """

    task: str
    weight: float
    source: Sequence[Content]
    origin: str = ""

    def __str__(self) -> str:
        return f"task {self.task!r}" + f" of source {self.origin!r}" * bool(self.origin)


class Pick(NamedTuple):
    """The entry a document belongs to, and how many earlier documents that entry had."""

    entry: int
    ordinal: int


class Schedule:
    """Which of several entries each document belongs to, in proportion to their weights."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self.seed, self.counts = seed, _shares(weights)

    def pick(self, index: int) -> Pick:
        block, offset = divmod(index, BLOCK)
        entries, before = _block(self.seed, self.counts, block)
        entry = int(entries[offset])
        return Pick(entry, block * self.counts[entry] + int(before[offset]))


class Mixture(Schedule):
    """Entries in proportion to their weights, in a seeded order with random access.

    Raises:
      ValueError: an unknown task, an empty source, a weight that is negative or too small to
        appear in a block; the message names the task and, if there are several, the source.
    """

    def __init__(self, entries: Sequence[Entry], seed: int) -> None:
        self.entries = tuple(entry for entry in entries if entry.weight != 0)
        for entry in self.entries:
            _check(entry)
        super().__init__([entry.weight for entry in self.entries], seed)
        for entry, count in zip(self.entries, self.counts, strict=True):
            if count == 0:
                raise ValueError(
                    f"{entry} gets less than 1 in {BLOCK} of the mixture's documents; raise its "
                    f"weight, or {'leave it out' if entry.origin else 'set it to 0'}"
                )
        parts = sorted((entry.origin, entry.task) for entry in self.entries)
        self._parts = [parts.index((entry.origin, entry.task)) for entry in self.entries]
        self._orders = [
            grain.MapDataset.range(len(entry.source)).seed(seed + index).shuffle().repeat()
            for index, entry in enumerate(self.entries)
        ]

    def again(self) -> Mixture:
        """The same entries in another order."""
        return Mixture(self.entries, self.seed + FURTHER)

    def part(self, entry: int) -> int:
        """Number of an entry's source and task in the order of their names (`mixture_parts`)."""
        return self._parts[entry]

    def tally(self, documents: Iterable[tuple[int, int]]) -> Counter:
        """Counts the documents of each task and source, and the slots of each source.

        Args:
          documents: index and slots of each document.
        """
        found: Counter = Counter()
        for index, slots in documents:
            entry = self.entries[self.pick(index).entry]
            found[f"task/{entry.task}"] += 1
            if entry.origin:
                found[f"source/{entry.origin}"] += 1
                found[f"source_slots/{entry.origin}"] += slots
        return found

    def examples(self, pick: Pick, shift: int = 0, skipped: Counter | None = None) -> list[Content]:
        """The records of a document. `shift` advances in the source, past records that failed.

        Args:
          skipped: "unreadable" is increased by the number of records that were replaced; None: the
            first unreadable record raises.

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
    sources: Sequence[Content] | Mapping[str, Sequence[Content]],
    seed: int,
) -> Mixture:
    """The mixture of the `entries_of` a table of weights: one source for all, or one per task."""
    return Mixture(entries_of(weights, sources), seed)


def entries_of(
    weights: Mapping[str, float],
    sources: Sequence[Content] | Mapping[str, Sequence[Content]],
    origin: str = "",
) -> list[Entry]:
    """The entries of a table of task weights.

    Args:
      weights: task name to weight, such as {"text_to_image": 0.45, "text": 0.25}.
      sources: one source for all tasks, or one for each task by name. A task reads only the records
        that have what it needs, if the source knows which those are (`sources.traits`).
      origin: the name of the source if the mixture has several.

    Raises:
      ValueError: a task has no source, or its source has no record for it.
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
        source = sources[task]
        if task in TASKS and weight and (TASKS[task].needs or may_lack(source)):
            records = source.source if isinstance(source, Looking) else source
            if id(records) not in known:
                known[id(records)] = traits_of_source(records)
            source = _serving(task, source, known[id(records)], origin)
        entries.append(Entry(task, weight, source, origin))
    return entries


def _serving(
    task: str, source: Sequence[Content], traits: np.ndarray | None, origin: str
) -> Sequence[Content]:
    """The records of a source that can serve a task."""
    needs, takes = TASKS[task].needs, TASKS[task].takes
    fit = source if traits is None else records_with(source, needs, traits, takes)
    wanted = " or ".join(needs) or " and ".join(takes)
    if len(source) and not len(fit):
        cure = "name other tasks for the source" if origin else "set its weight in the mixture to 0"
        named = f"source {origin!r}, {source!r}" if origin else repr(source)
        raise ValueError(
            f"no record of {named} has {wanted}, which the task {task!r} needs: add some, or {cure}"
        )
    # Few records have questions or edits, so only a missing picture or caption is worth a line.
    if len(fit) < len(source) and not needs:
        _warn(
            f"{source!r}: {len(fit)} of {len(source)} records have {wanted}, which the task "
            f"{task!r} needs; it does not read the others"
        )
    return fit


@functools.lru_cache(maxsize=1024)
def _warn(message: str) -> None:
    """Logs a message once in this process."""
    LOG.warning(message)


@dataclasses.dataclass(frozen=True)
class DocumentStream:
    """Documents by index.

    Attributes:
      broken: "error" or "skip": what to do with an example that cannot be read or lacks what its
        task needs. A skipped example is replaced by the next of its source and counted as
        "unreadable" or "broken".
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
        """Document `index`, and how many examples were skipped for it as "unreadable", "broken" or
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
        entry = self.mixture.entries[pick.entry]
        raise ValueError(
            f"{ATTEMPTS} examples in a row cannot serve the {entry}, the last one because {reason}"
        )

    def _build(self, pick: Pick, index: int, shift: int, skipped: Counter) -> Document:
        skip = self.broken == "skip"
        examples = self.mixture.examples(pick, shift, skipped if skip else None)
        entry = self.mixture.entries[pick.entry]
        check_content(entry.task, examples, entry.source, entry.origin)
        rng = np.random.default_rng([self.mixture.seed, index, shift])
        segments = TASKS[entry.task].function(examples, rng)
        how = self.tokenizer, self.sequence, rng, examples[0].key
        document = build_training(segments, *how)
        while len(document) > self.packing.slots and is_long_text(segments):
            segments = [half_of(segments[0], rng)]
            document = build_training(segments, *how)
        # First the part, since a copy would not know the size that is computed for the check.
        document = dataclasses.replace(document, part=self.mixture.part(pick.entry))
        check_fits(document, self.packing)
        return document


def _check(entry: Entry) -> None:
    if entry.task not in TASKS:
        raise ValueError(f"task {entry.task!r} is unknown; choose from {', '.join(TASKS)}")
    if not entry.weight > 0:
        raise ValueError(f"{entry} has weight {entry.weight}; weights must be positive")
    if len(entry.source) == 0:
        raise ValueError(f"the source of {entry} is empty; give it at least one example")


@functools.lru_cache(maxsize=16)
def _block(seed: int, counts: tuple[int, ...], block: int) -> tuple[np.ndarray, np.ndarray]:
    """(entry, earlier documents of that entry in the block) for each document of a block."""
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
