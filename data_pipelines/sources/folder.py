"""Pictures in a folder with a JSONL file of texts, as Hugging Face's `imagefolder` has it."""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.decoding import load_image, shown
from data_pipelines.examples import Edit, Example, Question
from data_pipelines.faults import RecordError, SourceError, patiently
from data_pipelines.sources.checks import check_texts
from data_pipelines.sources.traits import TRAITS

LISTS = ("captions.jsonl", "metadata.jsonl")  # looked for in this order
IMAGE_KEYS = ("file_name", "image")
CAPTION_KEYS = ("captions", "caption", "text")
_HAS_TRAITS = re.compile(b'"(%s)"' % "|".join(TRAITS).encode())


class FolderSource:
    """Random access to the pictures of a folder, for `grain.MapDataset.source`.

    The folder holds `captions.jsonl` (or `metadata.jsonl`), one JSON object a line:

        {"file_name": "cat.jpg", "text": "a cat",
         "questions": [{"question": "what is it?", "answer": "a cat", "kind": "object"}],
         "edits": [{"instruction": "remove the hat", "target": "bald.jpg", "kind": "remove"}]}

    `file_name` may be called `image`; the text `text`, `caption` or `captions` (a text or a list).
    Questions, edits, an edit's `caption` and the `thought` before drawing are optional. Other
    columns are left alone, since such files often carry more than texts.

    Only line offsets are kept in memory; a line is read, and its faults are found, on access.

    Args:
      path: the folder; "~" is the home directory.
      read: path of a picture -> what an `Example` holds of it; `decoding.load_file` keeps files.

    Raises:
      SourceError: the folder or its list is missing, or the list is empty; on access: the disk or
        the network fails.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        read: Callable[[pathlib.Path], np.ndarray | bytes] = load_image,
    ) -> None:
        self.path, self._read = pathlib.Path(path).expanduser(), read
        self.list = self._find_list()
        self._lines, self._offsets = _line_offsets(self.list)
        if not len(self._offsets):
            raise SourceError(
                f"{shown(self.list)}: no line with a picture: add one JSON object a line"
            )

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r}: index {index} is not in [0, {len(self)})")
        where = f"{shown(self.list)} line {self._lines[index]}"
        line = patiently(lambda: self.line(index), where)
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"{where}: not JSON ({error}): write one object a line") from None
        if not isinstance(row, dict):
            raise RecordError(f"{where}: not a JSON object: write {{...}} with file_name and text")
        return self._content(row, where)

    def traits(self) -> np.ndarray:
        """(N,) uint8 traits, from one pass over the list; pictures are not looked at."""
        found = np.zeros(len(self), np.uint8)
        with open(self.list, "rb") as file:
            lines = (line for line in file if line.strip())
            for index, line in enumerate(lines):
                if _HAS_TRAITS.search(line):  # most lines of most lists do not: no need to parse
                    found[index] = _line_traits(line)
        return found

    def __repr__(self) -> str:
        return f"FolderSource({shown(self.list)})"

    def _find_list(self) -> pathlib.Path:
        return find_list(self.path, LISTS, '{"file_name": "cat.jpg", "text": "a cat"}')

    def line(self, index: int) -> bytes:
        """The line of a row, as it is in the list."""
        with open(self.list, "rb") as file:
            file.seek(self._offsets[index])
            return file.readline()

    def first_picture(self, row: Mapping[str, Any]) -> str:
        """The file of a row's first picture; StopIteration: it has none."""
        return next(row[key] for key in IMAGE_KEYS if row.get(key) is not None)

    def _content(self, row: Mapping[str, Any], where: str) -> Example:
        name = _first(row, IMAGE_KEYS, where)
        texts = _first(row, CAPTION_KEYS, where)
        captions = [texts] if isinstance(texts, str) else texts
        if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
            raise RecordError(f"{where}: captions must be a text or a list of texts")
        questions = [
            Question(*_fields(item, ("question", "answer"), {"kind": "other"}, where))
            for item in _optional(row, "questions", list, where)
        ]
        example = Example(
            key=where,
            image=self._image(name, where),
            captions=tuple(sorted(captions, key=len)),
            questions=tuple(questions),
            edits=tuple(self._edit(item, where) for item in _optional(row, "edits", list, where)),
            thought=_optional(row, "thought", str, where),
        )
        check_texts(example, where)
        return example

    def _edit(self, item: Any, where: str) -> Edit:
        defaults = {"kind": "other", "caption": ""}
        instruction, target, kind, caption = _fields(
            item, ("instruction", "target"), defaults, where
        )
        return Edit(instruction, self._image(target, where), kind, caption)

    def _image(self, name: Any, where: str) -> np.ndarray | bytes:
        if not isinstance(name, str) or not name:
            raise RecordError(
                f"{where}: {name!r} is not a file name: give one relative to the folder"
            )
        try:
            return patiently(lambda: self._read(self.path / name), where)
        except SourceError:
            raise
        except ValueError as error:
            raise RecordError(f"{where}: {error}") from error


def _optional(row: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """A column that may be missing or null, and then is empty."""
    value = row.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        wanted = {list: "a list of objects", str: "a text"}[kind]
        raise RecordError(f"{where}: {key} is {value!r}: give {wanted}, or leave it out")
    return value


def _line_traits(line: bytes) -> int:
    """The traits that a line seems to have; its faults are reported where it is read."""
    try:
        row = json.loads(line)
        return sum(value for name, value in TRAITS.items() if row.get(name))
    except (ValueError, AttributeError, RecursionError):
        return 0


def find_list(path: pathlib.Path, names: Sequence[str], line: str) -> pathlib.Path:
    """The first of the files `names` that a folder has.

    Args:
      line: an example of what such a file holds.

    Raises:
      SourceError: the folder or its list is missing.
    """
    if not path.is_dir():
        raise SourceError(f"{shown(path)}: no such folder: check the path")
    for name in names:
        if (path / name).is_file():
            return path / name
    neither = "holds neither " if len(names) > 1 else "has no "
    raise SourceError(
        f"{shown(path)}: {neither}{' nor '.join(names)}: write {names[0]} with lines like {line}"
    )


def _line_offsets(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (from 1) and byte offsets of the lines that are not blank."""
    numbers, offsets, offset = [], [], 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                numbers.append(number)
                offsets.append(offset)
            offset += len(line)
    return np.asarray(numbers, np.int64), np.asarray(offsets, np.int64)


def _first(row: Mapping[str, Any], keys: tuple[str, ...], where: str) -> Any:
    for key in keys:
        if row.get(key) is not None:
            return row[key]
    raise RecordError(f"{where}: no {' or '.join(map(repr, keys))}: add it or remove the line")


def _fields(
    item: Any, required: tuple[str, ...], defaults: dict[str, str], where: str
) -> list[str]:
    """Texts of a question or edit, required ones first, then those of `defaults`, in order."""
    values = dict(defaults)
    values.update(item if isinstance(item, dict) else {})
    found = [values.get(name) for name in (*required, *defaults)]
    if not all(isinstance(value, str) for value in found) or not all(found[: len(required)]):
        wanted = ", ".join(map(repr, required))
        raise RecordError(f"{where}: {item!r} needs the texts {wanted}: add them or remove it")
    return found
