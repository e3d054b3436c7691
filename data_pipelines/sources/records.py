"""Examples on disk: ArrayRecord files whose records describe themselves.

A record is one msgpack map

    {"format": "example/1", "key": str, "image": FILE, "captions": [str, ...],
     "questions": [[question, answer, kind], ...],
     "edits": [[instruction, FILE, kind, caption], ...], "thought": str}

with FILE the bytes of a PNG, JPEG or WebP file, so any language with a msgpack reader can use the
records. A record of words alone has nil for its image. Pictures are stored without loss: drawn ones
as PNG, those from files with the file's bytes.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import glob
import itertools
import logging
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import msgpack
import numpy as np
from array_record.python import array_record_module

from data_pipelines.decoding import encode_png, load_image, shown
from data_pipelines.examples import Edit, Example, Question
from data_pipelines.faults import RecordError, SourceError, one_line, patiently
from data_pipelines.sources.checks import check_texts
from data_pipelines.sources.copies import local_files
from data_pipelines.sources.files import Paths, described, find_files
from data_pipelines.sources.open_files import OpenFiles
from data_pipelines.sources.rows import ReadImage, read_image
from data_pipelines.sources.traits import (
    LACKS,
    TRAITS,
    load_traits,
    sidecar,
    store_traits,
    traits_of,
)
from unicom_jax.core.paths import as_path

Content = TypeVar("Content")
FORMAT = "example/1"
SUFFIX, UNFINISHED = ".array_record", ".unfinished"
SHARD_NAME = re.compile(rf"(?P<prefix>.*)-(?P<index>\d{{5}})-of-(?P<count>\d{{5}}){SUFFIX}")
# One record per group: the only layout with cheap random access. Pictures do not compress further.
WRITER_OPTIONS = "group_size:1,uncompressed"
READER_OPTIONS = "readahead_buffer_size:0"  # for random access
LOG = logging.getLogger(__name__)


def encode_example(example: Example) -> bytes:
    """One record. Inverse of `decode_example`, which also decodes pictures given as bytes here."""
    edits = [[e.instruction, _file_of(e.target), e.kind, e.caption] for e in example.edits]
    content = {
        "format": FORMAT,
        "key": example.key,
        "image": _file_of(example.image),
        "captions": list(example.captions),
        "questions": [[q.question, q.answer, q.kind] for q in example.questions],
        "edits": edits,
        "thought": example.thought,
    }
    return msgpack.packb(content)


def _file_of(picture: np.ndarray | bytes | None) -> bytes | None:
    return encode_png(picture) if isinstance(picture, np.ndarray) else picture


def decode_example(data: bytes, where: str, read: ReadImage | None = None) -> Example:
    """Read one record.

    Args:
      data: what `encode_example` wrote.
      where: file and index, for the error message.
      read: bytes of a picture file -> the picture; None: `load_image`.

    Raises:
      RecordError: the record is damaged, has another format, or holds nothing to learn from.
    """
    read = read or load_image
    try:
        content = msgpack.unpackb(data)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, not {FORMAT!r}")
        edits = [
            Edit(instruction, read_image(target, where, read), kind, caption)
            for instruction, target, kind, caption in content["edits"]
        ]
        example = Example(
            key=content["key"],
            image=None if content["image"] is None else read_image(content["image"], where, read),
            captions=tuple(content["captions"]),
            questions=tuple(Question(*question) for question in content["questions"]),
            edits=tuple(edits),
            thought=content["thought"],
        )
    except RecordError:  # of a picture
        raise
    except Exception as error:  # msgpack alone has half a dozen unrelated error types
        raise RecordError(
            f"{where}: broken record ({one_line(error)}): write the file again"
        ) from error
    check_texts(example, where)
    return example


def write_records(
    prefix: str | os.PathLike, examples: Sequence[Example], shards: int = 1
) -> list[pathlib.Path]:
    """Write examples to `prefix`-00000-of-0000N.array_record, example i to shard i mod N.

    See `write_shards`.
    """
    every = range(len(examples))
    return write_shards(prefix, [(examples[i] for i in every[k::shards]) for k in range(shards)])


def write_shards(
    prefix: str | os.PathLike, parts: Sequence[Iterable[Example]]
) -> list[pathlib.Path]:
    """Write each part to a file of its own, one at a time. See `publish`."""
    return publish(
        prefix,
        len(parts),
        lambda paths: [write_shard(path, part) for path, part in zip(paths, parts, strict=True)],
    )


def publish(
    prefix: str | os.PathLike, count: int, write: Callable[[list[str]], Sequence[np.ndarray]]
) -> list[pathlib.Path]:
    """Publishes the files `prefix`-00000-of-0000N.array_record and so on, which `write` writes.

    The files, and the traits beside them, get their names only when all are complete. Files with
    this prefix and another number of shards are then removed, so that no record exists twice.

    Args:
      write: writes to the given paths, and returns the traits of the records of each file.

    Returns:
      The paths.
    """
    prefix = os.fspath(prefix)
    names = [f"{prefix}-{i:05d}-of-{count:05d}" for i in range(count)]
    os.makedirs(os.path.dirname(prefix) or ".", exist_ok=True)
    old = f"{glob.escape(prefix)}-{'[0-9]' * 5}-of-{'[0-9]' * 5}"
    _remove_unfinished(old)  # of a preparation that was killed
    try:
        traits = write([name + UNFINISHED for name in names])
    except BaseException:
        _remove_unfinished(old)
        raise
    for path in glob.glob(old + SUFFIX):
        os.remove(path)
        sidecar(path).unlink(missing_ok=True)
    for name, found in zip(names, traits, strict=True):
        os.replace(name + UNFINISHED, name + SUFFIX)
        store_traits(name + SUFFIX, found)
    return [pathlib.Path(name + SUFFIX) for name in names]


def _remove_unfinished(pattern: str) -> None:
    for path in glob.glob(f"{pattern}{UNFINISHED}*"):
        os.remove(path)


def write_shard(path: str, examples: Iterable[Example]) -> np.ndarray:
    """Writes one file and returns the traits of its records."""
    writer = array_record_module.ArrayRecordWriter(os.fsencode(path), WRITER_OPTIONS)
    traits = bytearray()
    try:
        for example in examples:
            writer.write(encode_example(example))
            traits.append(traits_of(example))
    finally:
        writer.close()
    return np.frombuffer(bytes(traits), np.uint8)


class ArrayRecordSource(Generic[Content]):
    """Random access to the records of ArrayRecord files, for `grain.MapDataset.source`.

    Args:
      paths: a file, a directory (all its *.array_record), a glob pattern, or a list of these.
      decode: (bytes, file and index) -> what a record holds; by default an Example.

    Raises:
      SourceError: no file is found, or one is not an ArrayRecord file; on access, the disk or the
        network fails.
    """

    def __init__(
        self,
        paths: str | os.PathLike | Sequence[str | os.PathLike],
        decode: Callable[[bytes, str], Content] = decode_example,
    ) -> None:
        self.paths, self._decode = find_records(paths), decode
        self._stops = list(itertools.accumulate(map(count_records, self.paths)))
        self._readers = OpenFiles(functools.partial(_open_reader, self.paths))

    def __len__(self) -> int:
        return self._stops[-1]

    def __getitem__(self, index: int) -> Content:
        file = bisect.bisect_right(self._stops, index)
        if index < 0 or file == len(self.paths):
            raise IndexError(f"{self!r}: index {index} is not in [0, {len(self)})")
        local = index - (self._stops[file - 1] if file else 0)
        where = f"{shown(self.paths[file])} record {local}"
        return self._decode(self._read(file, local, where), where)

    def _read(self, file: int, local: int, where: str) -> bytes:
        try:
            return patiently(lambda: self._record(file, local), where)
        except SourceError:
            raise
        except Exception as error:  # the reader's own errors are C++ statuses
            raise RecordError(f"{where}: unreadable ({one_line(error)}): write it again") from error

    def _record(self, file: int, local: int) -> bytes:
        try:
            return self._readers[file].read([local])[0]
        except Exception:
            self._readers.forget(file)  # one that failed to open never recovers
            raise

    @property
    def may_lack(self) -> bool:
        """Whether stored traits say which records lack a picture or captions; usually none does."""
        return all(sidecar(path).exists() for path in self.paths)

    def traits(self) -> np.ndarray:
        """(N,) uint8 traits of the examples: those stored beside the files, or else computed by
        reading every record of a file once, and then stored.
        """
        return np.concatenate([self._traits_of(file) for file in range(len(self.paths))])

    def _traits_of(self, file: int) -> np.ndarray:
        path, start = self.paths[file], self._stops[file - 1] if file else 0
        count = self._stops[file] - start
        if (found := load_traits(path, count)) is not None:
            return found
        LOG.warning(
            "%s: reading all %d records once to learn what each can serve", shown(path), count
        )
        found = np.zeros(count, np.uint8)
        for local in range(count):
            with contextlib.suppress(RecordError):  # it can serve no task, and is counted when read
                found[local] = _raw_traits(self._read(file, local, f"{shown(path)} record {local}"))
        store_traits(path, found)
        return found

    def __repr__(self) -> str:
        return described("ArrayRecordSource", self.paths)


def _raw_traits(data: bytes) -> int:
    """The traits of an encoded example, whose pictures are not decoded."""
    try:
        content = msgpack.unpackb(data)
        has = sum(value for name, value in TRAITS.items() if content[name])
        return has + sum(value for name, value in LACKS.items() if not content[name])
    except Exception:  # the reason is reported when the record is read
        return 0


def _open_reader(paths: Sequence[str], number: int) -> Any:
    return array_record_module.ArrayRecordReader(
        os.fsencode(paths[number]), options=READER_OPTIONS, file_reader_buffer_size=2**15
    )


def read_records(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> Iterator[Example]:
    """All examples of some files in order; arguments and errors as for ArrayRecordSource."""
    source = ArrayRecordSource(paths)
    return (source[index] for index in range(len(source)))


def find_records(paths: Paths) -> list[str]:
    """ArrayRecord files: what `find_files` finds, and for files in a store their copies; those of a
    folder must be complete sets."""
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    files = {}
    for path in given or [given]:
        found = find_files(path, (SUFFIX,), "check the path, or prepare the data")
        if as_path(path).expanduser().is_dir():
            check_complete(found)
        files |= dict.fromkeys(found)
    return local_files(list(files), beside=lambda name: sidecar(name).name)


def check_complete(paths: Iterable[str]) -> None:
    """Checks file names like `x-00000-of-00003.array_record`.

    Raises:
      SourceError: one of the files of x is missing, or x was written twice, with different numbers
        of files.
    """
    found: dict[str, dict[int, set[int]]] = {}
    for path in paths:
        if part := SHARD_NAME.fullmatch(path):
            indices = found.setdefault(part["prefix"], {}).setdefault(int(part["count"]), set())
            indices.add(int(part["index"]))
    for prefix, counts in found.items():
        for count, indices in counts.items():
            if missing := sorted(set(range(count)) - indices):
                raise SourceError(
                    f"{shown(prefix)}-{missing[0]:05d}-of-{count:05d}{SUFFIX}: missing "
                    f"({len(missing)} of {count} files are): copy the missing files again, or "
                    "name those that you want"
                )
        if len(counts) > 1:
            which = " and ".join(f"of-{count:05d}" for count in sorted(counts))
            raise SourceError(
                f"{shown(prefix)}-*: the folder holds two sets of files, {which}, and records "
                "would be read twice: delete one set, or name the files that you want"
            )


def count_records(path: str) -> int:
    """How many records a file holds.

    Raises:
      SourceError: it cannot be read or is not a complete ArrayRecord file.
    """
    try:
        patiently(lambda: open(path, "rb").close(), shown(path))  # the reader's own error is a page
    except OSError as error:
        raise SourceError(
            f"{shown(path)}: cannot be read ({error.strerror}): let this user read it, or copy it "
            "again"
        ) from error
    try:
        reader = array_record_module.ArrayRecordReader(os.fsencode(path), options=READER_OPTIONS)
        count = reader.num_records()
        if not reader.ok():
            reader.read([0])  # raises what is wrong
        reader.close()
    except Exception as error:  # a C++ status again
        raise SourceError(
            f"{shown(path)}: not a complete ArrayRecord file ({one_line(error)}): write or copy it "
            "again"
        ) from error
    return count
