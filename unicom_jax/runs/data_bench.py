"""`unicom data bench`: how fast a stage's batches are made, in each step of the pipeline and in
comparison with other loaders.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from data_pipelines.batches import window_documents
from data_pipelines.bench import peers
from data_pipelines.bench.stages import (
    STAGES,
    Raw,
    Work,
    by_stage,
    rates,
    raw_documents,
    raw_stream,
)
from data_pipelines.build import load_or_train_tokenizer, stage_packing, stage_sequence
from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.config import resolve
from unicom_jax.runs.loading import stage_loader
from unicom_jax.runs.stages import check_row_stage, row_stages, spec_of

OURS = "unicom_jax"
HERE = 0  # workers: all work is in this process and timed by its processor time, despite other load
# Number of documents in each batch of a loader, until it is closed.
Documents = Iterator[int]


class Rate(NamedTuple):
    """Documents per second in several rounds."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.rounds)

    def __str__(self) -> str:
        return f"{self.median:.0f} ({min(self.rounds):.0f}-{max(self.rounds):.0f})"


def run_bench(args: argparse.Namespace, console: Console) -> None:
    """Prints the tables.

    Raises:
      ConfigError: a stage without rows.
      SourceError: its data cannot be read.
    """
    config = resolve(args.config, args.overrides)
    config.data.packed = ""  # rows are made from the sources
    label = args.stage or row_stages(config)[0]
    check_row_stage(config, label)
    name, tokenizer = spec_of(label).name, load_or_train_tokenizer(config, None)
    documents = window_documents(config, name, tokenizer)
    config[name].window_documents = documents
    work = Work(config.to_dict(), name, tokenizer.to_json(), documents)
    counts = range(1, args.workers + 1)
    windows = max(1, -(-args.documents // documents))
    load = _load()
    console.print(_stage_table(work, counts, windows))
    with tempfile.TemporaryDirectory(prefix="unicom-bench-") as folder:
        found, fill = _race(config, label, tokenizer, work, args, Path(folder), console)
    counts = [HERE, *counts]
    console.print(_race_table(found, counts))
    console.print(f"workers={HERE}: in one process, per second of its processor time")
    for workers in counts:
        console.print(_ratio(found, workers), soft_wrap=True)
    console.print(f"rows are {fill:.1%} full (data/filled)")
    console.print(f"load average {load} at the start, {_load()} at the end, {os.cpu_count()} CPUs")


# ---- by stage ---------------------------------------------------------------------------------


def _stage_table(work: Work, counts: Sequence[int], windows: int) -> Table:
    table = Table(title="by stage: documents, tokens and MB per second", title_justify="left")
    for column in ("workers", "", *STAGES, "all"):
        table.add_column(column, justify="right")
    for workers in counts:
        found = rates(by_stage(work, workers, windows), workers)
        for row, unit in (("documents", "documents"), ("tokens", "tokens"), ("bytes", "MB")):
            cells = (_short(found[stage][row]) for stage in (*STAGES, "all"))
            table.add_row(str(workers) * (row == "documents"), unit, *cells)
    return table


def _short(value: float) -> str:
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


# ---- compared with others ---------------------------------------------------------------------


def _race(
    config: ConfigDict,
    label: str,
    tokenizer: Tokenizer,
    work: Work,
    args: argparse.Namespace,
    folder: Path,
    console: Console,
) -> tuple[dict[tuple[str, int], Rate], float]:
    """Runs each loader with each number of workers, alternately; also the share of used slots."""
    filled = [0, 0]

    def ours(workers: int) -> Documents:
        config.data.workers = workers
        with closing(stage_loader(config, label, tokenizer)) as loader:
            before = 0
            for step in itertools.count() if workers == HERE else ():
                yield loader.made(step)[1]["documents"]
            while True:
                next(loader)  # not kept: its memory is shared with the workers, which end first
                yield loader.counts["documents"] - before
                before = loader.counts["documents"]
                filled[:] = loader.counts["slots"], loader.counts["room"]

    loaders: dict[str, Callable[[int], Documents]] = {OURS: ours}
    loaders |= _others(config, work, args, folder, console)
    rounds: dict[tuple[str, int], list[float]] = {}
    for _, workers in itertools.product(range(args.rounds), range(HERE, args.workers + 1)):
        if workers == HERE:
            measured = _in_turn({n: start(HERE) for n, start in loaders.items()}, args.seconds)
        else:
            measured = {n: _timed(start(workers), args.seconds) for n, start in loaders.items()}
        for name, rate in measured.items():
            rounds.setdefault((name, workers), []).append(rate)
    found = {key: Rate(tuple(each)) for key, each in rounds.items()}
    return found, filled[0] / max(filled[1], 1)


def _others(
    config: ConfigDict, work: Work, args: argparse.Namespace, folder: Path, console: Console
) -> dict[str, Callable[[int], Documents]]:
    """The other installed loaders, over the same documents in files of their own."""
    absent = {name: peers.missing(name) for name in peers.PEERS}
    for name, lacking in absent.items():
        if lacking:
            console.print(
                f"! {name} is left out: {' and '.join(lacking)} is not installed "
                "(pip install 'unicom_jax[bench]')",
                soft_wrap=True,
            )
    if all(absent.values()):
        return {}
    stream = raw_stream(work)
    documents: list[Raw] = list(raw_documents(stream, range(args.documents)))
    sequence, packing = stage_sequence(config, work.stage), stage_packing(config, work.stage)
    peer = peers.Peer(
        work.tokenizer,
        sequence.images,
        sequence.patch,
        sequence.unit,
        packing.slots,
        packing.images,
        sequence.max_patches,
    )
    windows = config[work.stage].batch_size // packing.window_rows
    rows = windows * work.window_documents
    started: dict[str, Callable[[int], Any]] = {}
    if not absent["webdataset"]:
        paths = peers.write_shards(documents, folder, 4 * args.workers)
        started["webdataset"] = functools.partial(peers.webdataset_batches, paths, peer, rows)
    if not absent["datasets"]:
        path = peers.write_dataset(documents, folder / "dataset")
        started["datasets"] = functools.partial(peers.datasets_batches, path, peer, rows)
    return {
        name: lambda workers, start=start: (batch.documents for batch in start(workers))
        for name, start in started.items()
    }


def _timed(documents: Documents, seconds: float) -> float:
    """Documents per second, counted from the first batch on."""
    with closing(documents):
        next(documents)
        start, count = time.perf_counter(), 0
        while (taken := time.perf_counter() - start) < seconds:
            count += next(documents)
        return count / taken


def _in_turn(loaders: Mapping[str, Documents], seconds: float) -> dict[str, float]:
    """Documents per second of processor time, counted from the first batch on. The loaders make a
    batch each in turn, so that other work on the machine slows all of them alike.
    """
    taken, counts = dict.fromkeys(loaders, 0.0), Counter()
    with ExitStack() as stack:
        for documents in loaders.values():
            next(stack.enter_context(closing(documents)))
        while min(taken.values()) < seconds:
            for name, documents in loaders.items():
                start = time.process_time()
                counts[name] += next(documents)
                taken[name] += time.process_time() - start
    return {name: counts[name] / taken[name] for name in loaders}


def _race_table(found: Mapping[tuple[str, int], Rate], counts: Sequence[int]) -> Table:
    table = Table(title="whole batches: documents per second (least to most)", title_justify="left")
    table.add_column("workers", justify="right")
    names = list(dict.fromkeys(name for name, _ in found))
    for name in names:
        table.add_column(name, justify="right")
    for workers in counts:
        table.add_row(str(workers), *(str(found[name, workers]) for name in names))
    return table


def _ratio(found: Mapping[tuple[str, int], Rate], workers: int) -> str:
    """Ours over the fastest other, round by round."""
    others = {name: rate for (name, count), rate in found.items() if count == workers}
    own = others.pop(OURS)
    if not others:
        return f"workers={workers}: no other loader to compare with"
    best = max(others, key=lambda name: others[name].median)
    ratios = [a / b for a, b in zip(own.rounds, others[best].rounds, strict=True)]
    return (
        f"workers={workers}: {own.median / others[best].median:.2f} times {best} "
        f"({min(ratios):.2f}-{max(ratios):.2f} over {len(ratios)} rounds)"
    )


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"
