"""`unicom data prepare packed`: a stage's packed rows as ArrayRecord files, made in parallel.

A file holds a fixed range of windows, so its bytes do not depend on which worker writes it or on
what was written before. It gets its final name when it is complete, and an interrupted preparation
resumes with the missing files. Apache Beam spreads the files over workers: by default with its
local runner, or with the one of --runner, whose workers must share the folder.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python import array_record_module

from data_pipelines.batches import document_stream, document_tokens, row_facts, window_documents
from data_pipelines.faults import SourceError, one_line
from data_pipelines.loading.loader import FEWEST, LoaderConfig, PackedBatches
from data_pipelines.loading.rows import (
    MANIFEST,
    Row,
    check_facts,
    encode_row,
    plain,
    rows_of,
)
from data_pipelines.sequences.tokenizer import Tokenizer
from data_pipelines.sources.records import SUFFIX
from data_pipelines.sources.split import EVALUATION, TRAIN
from unicom_jax.core.batch import MixedBatch

FILES = 16  # at least, so that workers share the work and an interruption loses little
ROWS = 4096  # in a file, at most
WRITER_OPTIONS = "group_size:1,zstd:3"  # rows have long runs of zeros
FAILED, HALF = ".failed", ".unfinished"

# (pictures (R, M, N, P) uint8, grids (R, M, 2)) -> features (R, M, N, D). Must be picklable.
Features = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be prepared, as a worker needs it. Hashable and picklable.

    Attributes:
      config: the run's configuration as a Python literal, since JSON has no tuples.
      tokenizer: as JSON.
      directory: DIR/STAGE.
      window_documents: documents of a window.
      seed: for the order of the training documents; None: the configuration's.
      features: computes the features that replace the pictures; None keeps the pictures.
    """

    config: str
    stage: str
    tokenizer: str
    directory: str
    window_documents: int
    seed: int | None = None
    features: Features | None = None


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file: the windows [start, stop) of a split."""

    split: str
    index: int
    count: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.index:05d}-of-{self.count:05d}"


def shards_of(split: str, rows: int, window_rows: int) -> list[Shard]:
    """The files of a split; their number depends only on the number of rows."""
    windows = rows // window_rows
    count = min(windows, max(FILES, -(-rows // ROWS)))
    edges = [index * windows // count for index in range(count + 1)]
    return [Shard(split, i, count, edges[i], edges[i + 1]) for i in range(count)]


def make_plan(
    config: dict[str, Any],
    stage: str,
    tokenizer: Tokenizer,
    out: Path,
    features: Features | None = None,
    *,
    seed: int | None = None,
    folder: str = "",
) -> Plan:
    """Measures the first documents to decide how many a window gets and, if weights are by tokens,
    how many of them come from each source and task.

    A resumed preparation keeps its original numbers: the readable records may have changed since,
    and its files have to be consistent with each other.

    Args:
      out: DIR.
      folder: that of the stage's rows in DIR; by default the stage's name.
    """
    directory = out / (folder or stage)
    kept = _kept(directory)
    if config["data"]["weight_unit"] == "tokens":
        tokens = kept.get("document_tokens") or document_tokens(config, stage, tokenizer)
        settings = {**config[stage], "document_tokens": tuple(map(tuple, tokens))}
        config = {**config, stage: settings}
    documents = config[stage]["window_documents"] or kept.get("window_documents", 0)
    documents = documents or window_documents(config, stage, tokenizer)
    return Plan(repr(config), stage, tokenizer.to_json(), str(directory), documents, seed, features)


def _kept(directory: Path) -> dict[str, Any]:
    """The manifest of the preparation in a folder; {} if there is none."""
    path = directory / MANIFEST
    return _read_json(path) if path.is_file() else {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise SourceError(
            f"{path}: cannot be read ({one_line(error)}): prepare the rows into another folder"
        ) from error


# ---- on a worker ------------------------------------------------------------------------------


def write_shard(plan: Plan, shard: Shard) -> None:
    """Writes one file and, beside it, NAME.json with its counts. An existing file is kept.

    Errors that a person has to fix (a document too long, missing data) are written to NAME.failed
    instead, since most runners retry again and again after an exception.
    """
    final = Path(plan.directory, shard.name + SUFFIX)
    if final.exists():
        return
    half = final.with_name(f"{shard.name}-{uuid.uuid4().hex}{HALF}")  # runners may run it twice
    counts: Counter = Counter()
    writer = array_record_module.ArrayRecordWriter(os.fsencode(half), WRITER_OPTIONS)
    try:
        for row in shard_rows(plan, shard):
            writer.write(encode_row(row))
            counts.update(row.counts)
    except BaseException as error:
        writer.close()
        half.unlink(missing_ok=True)
        if not isinstance(error, ValueError | OSError):
            raise
        _write(final.with_name(shard.name + FAILED), one_line(error))
        return
    writer.close()
    _write(final.with_name(shard.name + ".json"), json.dumps(counts))
    os.replace(half, final)


def shard_rows(plan: Plan, shard: Shard) -> Iterator[Row]:
    """The rows of a file in order. The first row of a window carries the window's counts."""
    make = _window_maker(plan, shard.split)
    for window in range(shard.start, shard.stop):
        batch, counts = make(window)
        if plan.features is not None:
            batch = with_features(batch, plan.features)
        for index, row in enumerate(rows_of(batch)):
            yield Row(row, {} if index else counts)


def without_features(plan: Plan) -> Plan:
    """A plan for the same rows that keeps their pictures."""
    return dataclasses.replace(plan, features=None)


def with_features(batch: MixedBatch, features: Features) -> MixedBatch:
    """`batch` with features in place of its pictures."""
    made = features(batch.patches, batch.grids)
    return dataclasses.replace(batch, patches=None, features=made)


@functools.lru_cache(maxsize=4)
def _window_maker(plan: Plan, split: str) -> PackedBatches:
    """Maps windows to rows. Sources are opened once per process."""
    tokenizer = Tokenizer.from_json(plan.tokenizer)
    config = ast.literal_eval(plan.config)
    stream = document_stream(config, plan.stage, tokenizer, split, seed=plan.seed)
    rows = LoaderConfig(stream.packing.window_rows)
    return PackedBatches(stream, rows, plan.window_documents)


def _write(path: Path, text: str) -> None:
    half = path.with_name(f"{path.name}-{uuid.uuid4().hex}{HALF}")
    half.write_text(text, encoding="utf-8")
    os.replace(half, path)


# ---- around the workers -----------------------------------------------------------------------


def begin(
    plan: Plan, tokenizer: Tokenizer, shards: Sequence[Shard], window_rows: int, about: dict
) -> list[Shard]:
    """Begins or resumes a preparation, and returns the files that are still to be written.

    Args:
      about: further entries of the manifest, such as `features`; they must not change either.

    Raises:
      SourceError: the folder holds a different preparation.
    """
    directory = Path(plan.directory)
    facts = row_facts(ast.literal_eval(plan.config), plan.stage, seed=plan.seed)
    splits = {
        split: {
            "rows": window_rows * sum(s.stop - s.start for s in shards if s.split == split),
            "shards": sum(s.split == split for s in shards),
        }
        for split in (TRAIN, EVALUATION)
    }
    facts = {**facts, "tokenizer": tokenizer.fingerprint()}
    path = directory / MANIFEST
    if path.is_file():
        before = _read_json(path)
        for about_split in before["splits"].values():
            about_split.pop("counts", None)
        was = {**before["facts"], **{key: before[key] for key in (*about, "splits")}}
        check_facts({**facts, **about, "splits": splits}, was, f"{directory}: holds rows made with")
    directory.mkdir(parents=True, exist_ok=True)
    for stale in (*directory.glob(f"*{HALF}"), *directory.glob(f"*{FAILED}")):
        stale.unlink()
    tokenizer.save(directory.parent / "tokenizer")
    manifest = {"complete": False, "stage": plan.stage, "facts": plain(facts), **about}
    manifest |= {"window_documents": plan.window_documents, "splits": splits}
    if tokens := ast.literal_eval(plan.config)[plan.stage]["document_tokens"]:
        manifest["document_tokens"] = tokens
    _write(path, json.dumps(manifest, indent=2))
    return [shard for shard in shards if not (directory / (shard.name + SUFFIX)).exists()]


def finish(plan: Plan, shards: Sequence[Shard]) -> dict[str, Any]:
    """Writes the manifest of a preparation whose files all exist, and returns it.

    Raises:
      SourceError: a file could not be written; the message is that of its worker. Or too many
        records were unreadable; then training refuses the rows.
    """
    directory = Path(plan.directory)
    for failed in sorted(directory.glob(f"*{FAILED}")):
        raise SourceError(failed.read_text(encoding="utf-8"))
    missing = [shard for shard in shards if not (directory / (shard.name + SUFFIX)).exists()]
    if missing:
        raise SourceError(
            f"{directory}: {len(missing)} of {len(shards)} files are missing, {missing[0].name} "
            "first: run the same command again, it resumes where it stopped"
        )
    manifest = _read_json(directory / MANIFEST)
    for split, about in manifest["splits"].items():
        counts: Counter = Counter()
        for shard in shards:
            if shard.split == split:
                counts.update(_read_json(directory / f"{shard.name}.json"))
        about["counts"] = dict(counts)
    _check_unreadable(plan, manifest)
    _write(directory / MANIFEST, json.dumps({**manifest, "complete": True}, indent=2))
    return manifest


def _check_unreadable(plan: Plan, manifest: Mapping[str, Any]) -> None:
    """The rule of `Loader`, over all rows of a split."""
    share = ast.literal_eval(plan.config)["data"]["max_unreadable"]
    for split, about in manifest["splits"].items():
        unreadable = about["counts"].get("unreadable", 0)
        seen = unreadable + about["counts"].get("documents", 0)
        if unreadable > share * max(seen, FEWEST):
            raise SourceError(
                f"{plan.directory}: {unreadable} of {seen} records of {split} rows could not be "
                f"read, more than data.max_unreadable={share} allows: repair the data and prepare "
                "the rows into another folder, or run the same command with a larger value"
            )
