"""Examples on disk: ArrayRecord files whose records describe themselves.

A record is one msgpack map

    {"format": "example/1", "key": str, "image": PNG, "captions": [str, ...],
     "questions": [[question, answer, kind], ...],
     "edits": [[instruction, PNG, kind, caption], ...], "thought": str}

with PNG as bytes, so any language with a msgpack reader can use the files. Pictures are lossless.
"""

from __future__ import annotations

import bisect
import glob
import io
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import grain
import msgpack
import numpy as np
from array_record.python import array_record_module
from PIL import Image as PilImage

from data_pipelines.examples import Edit, Example, Question
from data_pipelines.images import load_image

Content = TypeVar("Content")
FORMAT = "example/1"
SUFFIX = ".array_record"
SHARD_NAME = re.compile(rf"(?P<prefix>.*)-(?P<index>\d{{5}})-of-(?P<count>\d{{5}}){SUFFIX}")
# One record a group: the only layout with cheap random access. PNG does not compress further.
WRITER_OPTIONS = "group_size:1,uncompressed"


class RecordError(ValueError):
    """One record that cannot be used; the message names the file, the index and the mend."""


class SourceError(ValueError):
    """A whole source that cannot be opened; the message names the path or key and the mend."""


def one_line(error: BaseException) -> str:
    """First line of an error's message, or its type where it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 to PNG bytes."""
    buffer = io.BytesIO()
    PilImage.fromarray(image).save(buffer, "PNG", compress_level=3)  # twice as fast as 6, same size
    return buffer.getvalue()


def encode_example(example: Example) -> bytes:
    """One record. Inverse of `decode_example`."""
    edits = [[e.instruction, encode_png(e.target), e.kind, e.caption] for e in example.edits]
    content = {
        "format": FORMAT,
        "key": example.key,
        "image": encode_png(example.image),
        "captions": list(example.captions),
        "questions": [[q.question, q.answer, q.kind] for q in example.questions],
        "edits": edits,
        "thought": example.thought,
    }
    return msgpack.packb(content)


def decode_example(data: bytes, where: str) -> Example:
    """Read one record.

    Args:
      data: what `encode_example` wrote.
      where: file and index, for the error message.

    Raises:
      RecordError: the record is damaged, of another format, or has no caption.
    """
    try:
        content = msgpack.unpackb(data)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, not {FORMAT!r}")
        edits = [
            Edit(instruction, load_image(target), kind, caption)
            for instruction, target, kind, caption in content["edits"]
        ]
        example = Example(
            key=content["key"],
            image=load_image(content["image"]),
            captions=tuple(content["captions"]),
            questions=tuple(Question(*question) for question in content["questions"]),
            edits=tuple(edits),
            thought=content["thought"],
        )
    except Exception as error:  # msgpack alone has half a dozen unrelated error types
        raise RecordError(
            f"{where}: broken record ({one_line(error)}): write the file again"
        ) from error
    check_captions(example.captions, where)
    return example


def check_captions(captions: Sequence[str], where: str) -> None:
    """Raise a RecordError unless there is at least one caption and none is blank."""
    if not captions or not all(isinstance(text, str) and text.strip() for text in captions):
        raise RecordError(f"{where}: empty caption: give a text or remove the record")


def write_records(
    prefix: str | os.PathLike, examples: Iterable[Example], shards: int = 1
) -> list[pathlib.Path]:
    """Write examples to `prefix`-00000-of-0000N.array_record, example i to shard i mod N.

    The files get their names only when all are complete. Returns the paths.
    """
    prefix = os.fspath(prefix)
    paths = [pathlib.Path(f"{prefix}-{i:05d}-of-{shards:05d}{SUFFIX}") for i in range(shards)]
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    unfinished = [path.with_suffix(".unfinished") for path in paths]
    writers = [
        array_record_module.ArrayRecordWriter(str(path), WRITER_OPTIONS) for path in unfinished
    ]
    try:
        for example, writer in zip(examples, itertools.cycle(writers), strict=False):
            writer.write(encode_example(example))
    except BaseException:
        for writer, path in zip(writers, unfinished, strict=True):
            writer.close()
            path.unlink()
        raise
    for writer, path, final in zip(writers, unfinished, paths, strict=True):
        writer.close()
        path.replace(final)
    return paths


class ArrayRecordSource(Generic[Content]):
    """Random access to the records of ArrayRecord files, for `grain.MapDataset.source`.

    Args:
      paths: a file, a directory (all its *.array_record), a glob pattern, or a list of these.
      decode: (bytes, file and index) -> what a record holds; by default an Example.

    Raises:
      SourceError: no file is found, or one is not an ArrayRecord file.
    """

    def __init__(
        self,
        paths: str | os.PathLike | Sequence[str | os.PathLike],
        decode: Callable[[bytes, str], Content] = decode_example,
    ) -> None:
        self.paths, self._decode = find_records(paths), decode
        self._files = [_open_records(path) for path in self.paths]
        self._stops = list(itertools.accumulate(len(file) for file in self._files))

    def __len__(self) -> int:
        return self._stops[-1]

    def __getitem__(self, index: int) -> Content:
        file = bisect.bisect_right(self._stops, index)
        if index < 0 or file == len(self._files):
            raise IndexError(f"{self!r}: index {index} is not in [0, {len(self)})")
        local = index - (self._stops[file - 1] if file else 0)
        where = f"{self.paths[file]} record {local}"
        try:
            data = self._files[file][local]
        except Exception as error:  # the reader's own errors are C++ statuses
            raise RecordError(f"{where}: unreadable ({one_line(error)}): write it again") from error
        return self._decode(data, where)

    def __repr__(self) -> str:
        return f"ArrayRecordSource({self.paths[0]} and {len(self.paths) - 1} more)"


def read_records(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> Iterator[Example]:
    """All examples of some files in order; arguments and errors as for ArrayRecordSource."""
    source = ArrayRecordSource(paths)
    return (source[index] for index in range(len(source)))


def find_records(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[str]:
    """Sorted files of a file name, a directory, a glob pattern, or a list of these."""
    if isinstance(paths, str | os.PathLike):
        name = os.fspath(paths)
        whole = os.path.isdir(name)
        found = sorted(glob.glob(os.path.join(name, "*" + SUFFIX) if whole else name))
        if not found:
            raise SourceError(
                f"{name}: no {SUFFIX} file there: check the path, or prepare the data"
            )
        if whole:
            check_complete(found)
        return found
    found = [file for path in paths for file in find_records(path)]
    if not found:
        raise SourceError("no paths given: name at least one file, directory or pattern")
    return found


def check_complete(paths: Iterable[str]) -> None:
    """Raises a SourceError where the names `x-00000-of-0000N` lack one of the N files of an x."""
    found: dict[tuple[str, str], set[int]] = {}
    for path in paths:
        if part := SHARD_NAME.fullmatch(path):
            found.setdefault((part["prefix"], part["count"]), set()).add(int(part["index"]))
    for (prefix, count), indices in found.items():
        if missing := sorted(set(range(int(count))) - indices):
            raise SourceError(
                f"{prefix}-{missing[0]:05d}-of-{count}{SUFFIX}: is missing, as {len(missing)} of "
                f"{int(count)} files: copy the missing ones again, or name those that you want"
            )


def _open_records(path: str) -> grain.sources.ArrayRecordDataSource:
    try:
        with open(path, "rb"):  # the reader's own words for this are a page long
            pass
    except OSError as error:
        raise SourceError(
            f"{path}: cannot be read ({error.strerror}): let this user read it, or copy it again"
        ) from error
    try:
        return grain.sources.ArrayRecordDataSource(path)
    except Exception as error:  # a C++ status again
        raise SourceError(
            f"{path}: not a complete ArrayRecord file ({one_line(error)}): write or copy it again"
        ) from error
