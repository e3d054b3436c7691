"""Pictures in a folder with a JSONL file of texts, as Hugging Face's `imagefolder` has it."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.examples import Edit, Example, Question
from data_pipelines.images import load_image
from data_pipelines.sources.records import RecordError, SourceError, check_captions

LISTS = ("captions.jsonl", "metadata.jsonl")  # looked for in this order
IMAGE_KEYS = ("file_name", "image")
CAPTION_KEYS = ("captions", "caption", "text")


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

    Raises:
      SourceError: the folder or its list is missing, or the list is empty.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = pathlib.Path(path)
        self.list = _find_list(self.path)
        self._lines, self._offsets = _line_offsets(self.list)
        if not len(self._offsets):
            raise SourceError(f"{self.list}: no line with a picture: add one JSON object a line")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r}: index {index} is not in [0, {len(self)})")
        where = f"{self.list} line {self._lines[index]}"
        with open(self.list, "rb") as file:
            file.seek(self._offsets[index])
            line = file.readline()
        try:
            row = json.loads(line)
        except ValueError as error:
            raise RecordError(f"{where}: no JSON ({error}): write one object a line") from None
        if not isinstance(row, dict):
            raise RecordError(f"{where}: not a JSON object: write {{...}} with file_name and text")
        return self._example(row, where)

    def __repr__(self) -> str:
        return f"FolderSource({self.list})"

    def _example(self, row: Mapping[str, Any], where: str) -> Example:
        name = _first(row, IMAGE_KEYS, where)
        texts = _first(row, CAPTION_KEYS, where)
        captions = [texts] if isinstance(texts, str) else texts
        if not isinstance(captions, list):
            raise RecordError(f"{where}: captions must be a text or a list of texts")
        check_captions(captions, where)
        questions = [
            Question(*_fields(item, ("question", "answer"), {"kind": "other"}, where))
            for item in row.get("questions") or ()
        ]
        return Example(
            key=where,
            image=self._image(name, where),
            captions=tuple(sorted(captions, key=len)),
            questions=tuple(questions),
            edits=tuple(self._edit(item, where) for item in row.get("edits") or ()),
            thought=str(row.get("thought") or ""),
        )

    def _edit(self, item: Any, where: str) -> Edit:
        defaults = {"kind": "other", "caption": ""}
        instruction, target, kind, caption = _fields(
            item, ("instruction", "target"), defaults, where
        )
        return Edit(instruction, self._image(target, where), kind, caption)

    def _image(self, name: Any, where: str) -> np.ndarray:
        if not isinstance(name, str) or not name:
            raise RecordError(f"{where}: {name!r} is no file name: give one relative to the folder")
        try:
            return load_image(self.path / name)
        except ValueError as error:
            raise RecordError(f"{where}: {error}") from error


def _find_list(path: pathlib.Path) -> pathlib.Path:
    if not path.is_dir():
        raise SourceError(f"{path}: no such folder: check the path")
    for name in LISTS:
        if (path / name).is_file():
            return path / name
    raise SourceError(
        f"{path}: holds neither {' nor '.join(LISTS)}: write {LISTS[0]} with lines like "
        '{"file_name": "cat.jpg", "text": "a cat"}'
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
        if key in row:
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
