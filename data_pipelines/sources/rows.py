"""Converts a row of named texts to an `Example`: one layout for lists, archives and tables.

    {"file_name": "cat.jpg", "text": "a cat",
     "questions": [{"question": "what is it?", "answer": "a cat", "kind": "object"}],
     "edits": [{"instruction": "remove the hat", "target": "bald.jpg", "kind": "remove"}],
     "thought": "a cat, then a hat"}

`file_name` may be called `image`; the text `text`, `caption` or `captions` (a text or a list).
Kinds, an edit's `caption` and the `thought` before drawing are optional. LLaVA's `conversations`
are read as questions:

    {"image": "cat.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                           {"from": "gpt", "value": "A cat."}]}
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data_pipelines.decoding import shown
from data_pipelines.examples import Edit, Example, Question
from data_pipelines.faults import RecordError, SourceError, patiently
from data_pipelines.sources.checks import check_texts
from data_pipelines.sources.traits import LACKS, TRAITS
from data_pipelines.sources.undecoded import PictureFile
from unicom_jax.core.paths import joined

IMAGE_KEYS = ("file_name", "image")
CAPTION_KEYS = ("captions", "caption", "text")
IMAGE_MARK = "<image>"
SPEAKERS = {"human": 0, "user": 0, "gpt": 1, "assistant": 1}  # who asks, who answers
# A row's reference to its picture -> the picture; raises ValueError if that cannot be used.
ReadImage = Callable[[Any], np.ndarray | bytes | PictureFile]


def parse_row(line: bytes, where: str) -> dict[str, Any]:
    """Parses one JSON object.

    Raises:
      RecordError: it is not a JSON object; the message begins with `where`.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{where}: not JSON ({error}): write one object a line") from None
    if not isinstance(row, dict):
        raise RecordError(f"{where}: not a JSON object: write one, {{...}}, a line")
    return row


def example_of(
    row: Mapping[str, Any], where: str, read: ReadImage, *, complete: bool = False
) -> Example:
    """The example that a row describes.

    Args:
      where: its key, and the beginning of messages.
      complete: a picture and a caption are required; otherwise either may be missing.

    Raises:
      RecordError: a value has the wrong type, the picture cannot be read, or the row is empty.
    """
    name = _first(row, IMAGE_KEYS, where, complete)
    texts = _first(row, CAPTION_KEYS, where, complete)
    captions = [texts] if isinstance(texts, str) else [] if texts is None else texts
    if not isinstance(captions, list) or not all(isinstance(text, str) for text in captions):
        raise RecordError(f"{where}: captions must be a text or a list of texts")
    questions = [
        Question(*_fields(item, ("question", "answer"), {"kind": "other"}, where))
        for item in _optional(row, "questions", list, where)
    ]
    edits = [_edit(item, where, read) for item in _optional(row, "edits", list, where)]
    example = Example(
        key=where,
        image=None if name is None else read_image(_single(name, where), where, read),
        captions=tuple(sorted(captions, key=len)),
        questions=(*questions, *_conversation(row, where)),
        edits=tuple(edits),
        thought=_optional(row, "thought", str, where),
    )
    check_texts(example, where, complete)
    return example


def traits_of_row(row: Any) -> int:
    """The traits that a row seems to have; its errors are reported when it is read."""
    if not isinstance(row, dict):
        return 0
    has = {**row, "questions": row.get("questions") or row.get("conversations")}
    found = sum(value for name, value in TRAITS.items() if has.get(name))
    keys = {"captions": CAPTION_KEYS, "image": IMAGE_KEYS}
    lacking = (LACKS[name] for name in LACKS if not any(row.get(key) for key in keys[name]))
    return found + sum(lacking)


def read_image(name: Any, where: str, read: ReadImage) -> np.ndarray | bytes | PictureFile:
    """A picture; an error in the picture itself breaks the record."""
    try:
        picture = read(name)
    except SourceError:  # the machine's fault, not the record's
        raise
    except ValueError as error:
        raise RecordError(f"{where}: {error}") from error
    if isinstance(picture, PictureFile):
        picture.where = where  # its errors are found when it is decoded
    return picture


def read_named(folder: pathlib.Path, read: ReadImage, name: Any) -> np.ndarray | bytes:
    """The picture with a file name relative to a folder; raises ValueError, as `ReadImage`."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"{name!r} is not a file name: give one relative to {shown(folder)}")
    if name.startswith(("http://", "https://")):
        raise ValueError(
            f"cannot read image {name}: pictures are not fetched from the web; download them "
            "first, for example with img2dataset"
        )
    path = joined(folder, name)
    return patiently(lambda: read(path), shown(path))


def _edit(item: Any, where: str, read: ReadImage) -> Edit:
    item = item if isinstance(item, Mapping) else {}
    target = item.get("target")
    words = {**item, "target": "given" if target else None}
    defaults = {"kind": "other", "caption": ""}
    instruction, _, kind, caption = _fields(words, ("instruction", "target"), defaults, where)
    return Edit(instruction, read_image(target, where, read), kind, caption)


def _single(name: Any, where: str) -> Any:
    """The picture of a row, which may be given as a list of one."""
    if not isinstance(name, list):
        return name
    if len(name) != 1:
        raise RecordError(
            f"{where}: lists {len(name)} pictures, but an example has one: use kind "
            "'conversations' for conversations about several"
        )
    return name[0]


def turns_of(row: Mapping[str, Any], where: str) -> list[str]:
    """The texts of a conversation, alternately question and answer; [] if there is none.

    Raises:
      RecordError: another speaker's turn is expected, or the last question has no answer.
    """
    texts = []
    for number, turn in enumerate(_optional(row, "conversations", list, where)):
        speaker, text = (
            (turn.get("from"), turn.get("value")) if isinstance(turn, Mapping) else (None, None)
        )
        known = isinstance(speaker, str) and speaker in SPEAKERS
        if not known or SPEAKERS[speaker] != number % 2 or not isinstance(text, str):
            raise RecordError(
                f"{where}: turn {number + 1} of its conversation is {str(turn)[:60]}: give "
                '{"from": "human", "value": ...} and {"from": "gpt", "value": ...} in turn'
            )
        texts.append(text)
    if len(texts) % 2:
        raise RecordError(f"{where}: its conversation ends with a question: add the answer")
    return texts


def picture_names(row: Mapping[str, Any]) -> list[Any]:
    """A row's references to its pictures."""
    value = next((row[key] for key in IMAGE_KEYS if row.get(key) is not None), [])
    return value if isinstance(value, list) else [value]


def _conversation(row: Mapping[str, Any], where: str) -> list[Question]:
    """Question and answer of each pair of turns, without the mark `<image>`."""
    turns = turns_of(row, where)
    marks = sum(text.count(IMAGE_MARK) for text in turns[::2])
    if marks > 1:
        raise RecordError(f"{where}: its conversation has {marks} marks {IMAGE_MARK}: keep one")
    texts = [text.replace(IMAGE_MARK, "").strip() for text in turns]
    if not all(texts):
        raise RecordError(f"{where}: its conversation has an empty turn: fill it in or remove it")
    return [Question(*pair, "conversation") for pair in zip(texts[::2], texts[1::2], strict=True)]


def _optional(row: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    """A column that may be missing or null, which means empty."""
    value = row.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        wanted = {list: "a list of objects", str: "a text"}[kind]
        raise RecordError(f"{where}: {key} is {value!r}: give {wanted}, or leave it out")
    return value


def _first(row: Mapping[str, Any], keys: tuple[str, ...], where: str, required: bool) -> Any:
    for key in keys:
        if row.get(key) is not None:
            return row[key]
    if required:
        raise RecordError(f"{where}: no {' or '.join(map(repr, keys))}: add it or remove the line")
    return None


def _fields(
    item: Any, required: tuple[str, ...], defaults: dict[str, str], where: str
) -> list[str]:
    """Texts of a question or edit, required ones first, then those of `defaults`, in order."""
    values = dict(defaults)
    values.update(item if isinstance(item, Mapping) else {})
    found = [values.get(name) for name in (*required, *defaults)]
    if not all(isinstance(value, str) for value in found) or not all(found[: len(required)]):
        wanted = ", ".join(map(repr, required))
        raise RecordError(f"{where}: {item!r} needs the texts {wanted}: add them or remove it")
    return found
