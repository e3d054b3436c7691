"""How long each stage of the pipeline takes: read, decode, resize, tokenise, pack.

Training runs them document by document. Here each runs over a whole window of documents before the
next one begins, with the same functions, so that each can be timed by itself, in any number of
processes at once.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import images
from data_pipelines.batches import document_stream
from data_pipelines.build import picture_reader
from data_pipelines.decoding import encode_png, read_file
from data_pipelines.segments import Image, Segment, Text
from data_pipelines.sequences.document import Document
from data_pipelines.sequences.dropout import build_training
from data_pipelines.sequences.mixture import DocumentStream
from data_pipelines.sequences.packing import assign, pack_rows
from data_pipelines.sequences.sequence import encode_words
from data_pipelines.sequences.tasks import TASKS, BrokenExample, check_content
from data_pipelines.sequences.tokenizer import Tokenizer

STAGES = ("read", "decode", "resize", "tokenise", "pack")


class Work(NamedTuple):
    """What a process needs in order to make a stage's documents. Can be pickled."""

    config: Mapping[str, Any]
    stage: str
    tokenizer: str  # as JSON
    window_documents: int


class Raw(NamedTuple):
    """A document whose pictures are the bytes of their files."""

    key: str
    segments: list[Segment]
    rng: np.random.Generator

    @property
    def size(self) -> int:
        """Bytes of its pictures and texts."""
        return sum(len(s.text.encode() if isinstance(s, Text) else s.pixels) for s in self.segments)


@dataclasses.dataclass
class Measured:
    """Seconds spent in each stage, summed over processes, and how much data passed through."""

    seconds: Counter = dataclasses.field(default_factory=Counter)
    counts: Counter = dataclasses.field(default_factory=Counter)

    def add(self, other: Measured) -> None:
        self.seconds.update(other.seconds)
        self.counts.update(other.counts)


def raw_stream(work: Work) -> DocumentStream:
    """The stage's documents; their records hold undecoded pictures."""
    tokenizer = Tokenizer.from_json(work.tokenizer)
    config = {**work.config, "data": {**work.config["data"], "cache_mb": 0}}
    return document_stream(config, work.stage, tokenizer, read=_undecoded)


def raw_documents(stream: DocumentStream, indices: range) -> Iterator[Raw]:
    """The documents at `indices`, except broken ones."""
    for index in indices:
        pick = stream.mixture.pick(index)
        entry = stream.mixture.entries[pick.entry]
        contents = stream.mixture.examples(pick, 0, Counter())
        check_content(entry.task, contents, entry.source, entry.origin)
        rng = np.random.default_rng([stream.mixture.seed, index, 0])
        try:
            segments = TASKS[entry.task].function(contents, rng)
        except BrokenExample:
            continue
        segments = [_as_file(segment) for segment in segments]
        yield Raw(contents[0].key, segments, rng)


def time_window(stream: DocumentStream, window: int, documents: int, read: Callable) -> Measured:
    """Runs one window through all stages.

    Args:
      read: bytes of a picture -> its pixels.
    """
    sequence, tokenizer, measured = stream.sequence, stream.tokenizer, Measured()
    timed = _timer(measured.seconds)
    with timed("read"):
        raw = list(raw_documents(stream, range(window * documents, (window + 1) * documents)))
    with timed("decode"):
        decoded = [_mapped(one.segments, lambda image: read(image.pixels)) for one in raw]
    with timed("resize"):
        resized = [
            _mapped(
                segments,
                lambda image: images.prepare(
                    image.pixels, sequence.policy_of(image.role), sequence.patch, sequence.unit
                ),
            )
            for segments in decoded
        ]
    with timed("tokenise"):
        for segments in resized:
            for segment in segments:
                if isinstance(segment, Text):
                    encode_words(tokenizer, segment.text)
    with timed("pack"):
        built: list[Document] = []
        for one, segments in zip(raw, resized, strict=True):
            built.append(build_training(segments, tokenizer, sequence, one.rng, one.key))
        rows, _ = assign([document.size for document in built], stream.packing)
        packed = [[built[i] for i in row] for row in rows]
        pack_rows(packed, stream.packing, sequence)
    measured.counts.update(
        documents=len(raw),
        tokens=sum(map(len, built)),
        bytes=sum(one.size for one in raw),
    )
    return measured


def by_stage(work: Work, workers: int, windows: int) -> Measured:
    """Times `windows` windows in each of `workers` processes that run at the same time."""
    context = multiprocessing.get_context("spawn")
    barrier, found = context.Barrier(workers), context.Queue()
    arguments = [
        (work, range(n * windows, (n + 1) * windows), barrier, found) for n in range(workers)
    ]
    processes = [context.Process(target=_run, args=one, daemon=True) for one in arguments]
    for process in processes:
        process.start()
    whole = Measured()
    for _ in processes:
        result = found.get()
        if isinstance(result, BaseException):
            for process in processes:
                process.kill()
            raise result
        whole.add(result)
    for process in processes:
        process.join()
    return whole


def rates(measured: Measured, workers: int) -> dict[str, dict[str, float]]:
    """Documents, tokens and MB per second of each stage and overall ("all"), with `workers`."""
    seconds = {**measured.seconds, "all": measured.seconds.total()}
    per = {"documents": 1.0, "tokens": 1.0, "bytes": 1e-6}
    return {
        stage: {
            name: measured.counts[name] * factor * workers / max(taken, 1e-9)
            for name, factor in per.items()
        }
        for stage, taken in seconds.items()
    }


def _run(work: Work, windows: range, barrier: Any, found: Any) -> None:
    try:
        stream, read, measured = raw_stream(work), picture_reader(work.config), Measured()
        time_window(stream, windows.stop, work.window_documents, read)  # opens and imports
        barrier.wait()
        for window in windows:
            measured.add(time_window(stream, window, work.window_documents, read))
        found.put(measured)
    except BaseException as error:
        barrier.abort()
        found.put(error)


def _timer(seconds: Counter) -> Callable:
    @contextmanager
    def timed(stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        seconds[stage] += time.perf_counter() - start

    return timed


def _mapped(segments: Sequence[Segment], function: Callable[[Image], np.ndarray]) -> list[Segment]:
    return [
        dataclasses.replace(one, pixels=function(one)) if isinstance(one, Image) else one
        for one in segments
    ]


def _undecoded(source: str | os.PathLike | bytes) -> bytes:
    return source if isinstance(source, bytes) else read_file(source)


def _as_file(segment: Segment) -> Segment:
    """Encodes pixels, which sources that draw their pictures provide, as a PNG file."""
    if isinstance(segment, Image) and isinstance(segment.pixels, np.ndarray):
        return dataclasses.replace(segment, pixels=encode_png(segment.pixels))
    return segment
