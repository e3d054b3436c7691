"""Records of folders, tar, Parquet and JSONL files as ArrayRecord files, written here or by
workers.

Every file holds a fixed range of records, so its bytes do not depend on which worker writes it.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipelines.decoding import load_file
from data_pipelines.examples import Example
from data_pipelines.faults import RecordError, SourceError, one_line
from data_pipelines.preparation import beam_engine
from data_pipelines.sources.records import UNFINISHED, publish, write_shard
from data_pipelines.sources.registry import Source

SHARD = 10_000  # examples in one file
MOST_BROKEN = 0.1  # share of the records that may be left out
NAMED = 3  # left-out records that are named at once, and that are never too many
LIST = "left_out.txt"  # names all of them, in the folder that is written
LOG = logging.getLogger(__name__)


class Engine(NamedTuple):
    """Where Apache Beam runs: see `beam_engine.run`."""

    runner: str
    workers: int
    flags: tuple[str, ...]


class Prepared(NamedTuple):
    files: int
    written: int
    broken: int


@dataclasses.dataclass(frozen=True)
class Part:
    """One file: the records [start, stop). Can be pickled."""

    path: str
    start: int
    stop: int


class Limit(NamedTuple):
    """How many of all records may be broken."""

    records: int
    share: float

    def check(self, broken: Sequence[str], seen: range) -> None:
        """Raises a SourceError if too many of the records `seen` are broken."""
        if len(broken) > max(NAMED, self.share * self.records):
            first = f"the first {seen.stop} records"
            some = f"records {seen.start} to {seen.stop - 1}" if seen.start else first
            raise SourceError(
                f"{len(broken)} of {some} are broken, more than "
                f"--max-broken={self.share:g} allows: repair the data, or allow more; the last: "
                f"{broken[-1]}"
            )


def prepare_files(
    open_files: Callable[..., Source],
    package: str,
    out: Path,
    engine: Engine | None = None,
    most_broken: float = MOST_BROKEN,
) -> Prepared:
    """Writes all records that can be read to `out`, and `LIST` if some cannot be.

    Args:
      open_files: opens the files, as open_files(package, read=...). With an engine it must be
        picklable.
      engine: None: this process.
      most_broken: the share of the records that may be left out.

    Raises:
      SourceError: all records are broken, or more than `most_broken` of them and more than `NAMED`,
        or the engine gave up. Nothing is written then.
    """
    source = open_files(package, read=load_file)
    starts = range(0, len(source), SHARD)
    broken: list[str] = []
    limit = Limit(len(source), most_broken)

    def write(paths: list[str]) -> Sequence[np.ndarray]:
        parts = [
            Part(path, start, min(start + SHARD, len(source)))
            for path, start in zip(paths, starts, strict=True)
        ]
        if engine is None:
            traits = [
                write_shard(part.path, _readable(source, part, broken, limit)) for part in parts
            ]
        else:
            work = functools.partial(write_part, open_files, package, limit)
            beam_engine.run(work, parts, out / beam_engine.LOG, *engine)
            traits = [_result(part, broken, limit) for part in parts]
        if len(broken) == len(source):
            raise SourceError(
                f"all {len(source)} records are broken, repair the data; the last: {broken[-1]}"
            )
        return traits

    publish(out / "examples", len(starts), write)
    _list(out / LIST, broken)
    return Prepared(len(starts), len(source) - len(broken), len(broken))


def _list(path: Path, broken: Sequence[str]) -> None:
    if broken:
        text = "".join(f"{line}\n" for line in broken)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    else:
        path.unlink(missing_ok=True)  # of an earlier preparation


def _readable(
    source: Source, part: Part, broken: list[str], limit: Limit, since: int = 0
) -> Iterator[Example]:
    """The readable records of a file; the others are added to `broken`, which has those from
    `since` on, and the first few are named."""
    for index in range(part.start, part.stop):
        try:
            yield source[index]
        except RecordError as error:
            broken.append(one_line(error))
            if len(broken) <= NAMED:
                LOG.warning("left out: %s", error)
            limit.check(broken, range(since, index + 1))


# ---- on a worker ------------------------------------------------------------------------------


def write_part(open_files: Callable[..., Source], package: str, limit: Limit, part: Part) -> None:
    """Writes one file, and PATH.json with the traits of its records and the broken ones.

    Errors that a person has to fix are written to PATH.json too, since most runners retry again and
    again after an exception.
    """
    half, broken, result = f"{part.path}.{uuid.uuid4().hex}", [], {}  # runners may run it twice
    try:
        source = _opened(open_files, package)
        traits = write_shard(half, _readable(source, part, broken, limit, part.start))
        result = {"traits": base64.b64encode(traits.tobytes()).decode(), "broken": broken}
        os.replace(half, part.path)
    except (ValueError, OSError) as error:
        Path(half).unlink(missing_ok=True)
        result = {"failed": one_line(error)}
    Path(f"{half}.json").write_text(json.dumps(result), encoding="utf-8")
    os.replace(f"{half}.json", f"{part.path}.json")


@functools.lru_cache(maxsize=1)
def _opened(open_files: Callable[..., Source], package: str) -> Source:
    """Opens the files, once per process."""
    return open_files(package, read=load_file)


def _result(part: Part, broken: list[str], limit: Limit) -> np.ndarray:
    """The traits that a worker found; its broken records are added to `broken`."""
    path = Path(f"{part.path}.json")
    if not path.is_file():
        name = Path(part.path).name.removesuffix(UNFINISHED)
        raise SourceError(f"{name} was not written: run the same command again")
    found = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    if "failed" in found:
        raise SourceError(found["failed"])
    broken += found["broken"]
    limit.check(broken, range(part.stop))
    return np.frombuffer(base64.b64decode(found["traits"]), np.uint8)
