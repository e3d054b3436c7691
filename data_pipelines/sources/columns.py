"""Which columns of a table hold what, and its rows in the layout of `sources.rows`.

A picture is the bytes of its file, {"bytes", "path"} as Hugging Face has it, or a path relative to
the table. Captions may be a JSON object of texts, and an edit the lists `image_list` and
`instruction_list`, as BAGEL's examples have them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sources.rows import CAPTION_KEYS
from data_pipelines.sources.traits import LACKS, TRAITS

TEXTS = ("string", "large_string", "binary", "large_binary")  # of pyarrow
IMAGES, INSTRUCTIONS = "image_list", "instruction_list"  # an edit as BAGEL has it


class Columns(NamedTuple):
    """The columns that are read, by what they hold; "": none.

    Attributes:
      image: pictures, or of edits the list of pictures.
      captions, questions, conversations: as `sources.rows` has them.
      others: the names of edits, instruction_list and thought, where they exist.
    """

    image: str
    captions: str
    questions: str
    conversations: str
    others: tuple[str, ...]

    def names(self) -> list[str]:
        return [name for name in (*self[:4], *self.others) if name]


def choose_columns(
    existing: Sequence[str], where: str, *, image: str, captions: str, questions: str
) -> Columns:
    """The columns to read.

    Raises:
      SourceError: one that was asked for does not exist, or there is nothing to learn from.
    """
    edits = IMAGES in existing and INSTRUCTIONS in existing and image not in existing
    asked = {"captions": captions, "questions": questions}
    if image != "image" and not edits:
        asked["image"] = image
    for option, name in asked.items():
        if name and name not in existing:
            raise SourceError(
                f"{where}: no column {name!r}: set data.source.{option} to one of "
                f"{', '.join(existing)}"
            )
    found = Columns(
        image=IMAGES if edits else image if image in existing else "",
        captions=captions or next((key for key in CAPTION_KEYS if key in existing), ""),
        questions=questions or ("questions" if "questions" in existing else ""),
        conversations="conversations" if "conversations" in existing else "",
        others=tuple(
            name
            for name in ("edits", "thought", *([INSTRUCTIONS] if edits else []))
            if name in existing
        ),
    )
    if not found.image and not found.captions:
        raise SourceError(
            f"{where}: no column 'image' and none with captions: set data.source.image and "
            f"data.source.captions to some of {', '.join(existing)}"
        )
    return found


def named(table: Any, row: int, columns: Columns, where: str) -> dict[str, Any]:
    """One row, under the names of `sources.rows`.

    Raises:
      RecordError: its file lacks the column of pictures or captions that the first file has.
    """
    values = table.slice(row, 1).to_pylist()[0]
    for name in columns.names():
        if name in (columns.image, columns.captions) and name not in values:
            raise RecordError(
                f"{where}: its file has no column {name!r}, as the first file does: write all with "
                "the same columns"
            )
        values.setdefault(name, None)
    fields = zip(Columns._fields[:4], columns[:4], strict=True)
    found = {field: values[name] for field, name in fields if name}
    if columns.questions and _is_conversation(found["questions"]):
        found["conversations"] = found.pop("questions")
    return found | {name: values[name] for name in columns.others}


def _is_conversation(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else None
    return isinstance(first, Mapping) and "from" in first


def plain(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A row whose captions are texts, and whose lists of pictures are edits."""
    row = dict(row)
    if isinstance(row.get("captions"), str):
        row["captions"] = _texts(row["captions"])
    if INSTRUCTIONS in row:
        pictures, instructions = row.pop("image") or [], row.pop(INSTRUCTIONS) or []
        if len(pictures) < 2 or len(instructions) != len(pictures) - 1:
            raise RecordError(
                f"{where}: {len(pictures)} pictures and {len(instructions)} instructions: give one "
                "instruction less than pictures, and at least two pictures"
            )
        row["image"], row["edits"] = pictures[0], list(_steps(pictures, instructions))
    return row


def _texts(captions: str) -> str | list[str]:
    """The texts of a JSON object of captions; another text is itself."""
    if captions.startswith("{"):
        try:
            found = json.loads(captions)
        except (ValueError, RecursionError):
            return captions
        if all(isinstance(text, str) for text in found.values()):
            return [text for text in found.values() if text.strip()]
    return captions


def _steps(pictures: Sequence[Any], instructions: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Edits from the first picture to each other one: instructions on the way are joined."""
    before: list[str] = []
    for target, given in zip(pictures[1:], instructions, strict=True):
        choices = [given] if isinstance(given, str) else given or [""]
        for choice in choices:
            instruction = " ".join([*before, choice]) if choice else ""
            yield {"instruction": instruction, "target": target, "kind": "other"}
        before.append(choices[0])


def trait_columns(columns: Columns) -> dict[str, int]:
    """The trait of each column that has one."""
    found = {columns.questions: TRAITS["questions"], columns.conversations: TRAITS["questions"]}
    found |= {name: TRAITS.get(name, TRAITS["edits"]) for name in columns.others}
    found.pop("", None)
    return found


def lacking(columns: Columns) -> int:
    bare = {"captions": not columns.captions, "image": not columns.image}
    return sum(LACKS[name] for name, lacks in bare.items() if lacks)


def filled(table: Any, names: Mapping[str, int]) -> np.ndarray:
    """(N,) uint8 traits of rows, from the columns that are neither null nor empty."""
    found = np.zeros(table.num_rows, np.uint8)
    for name, trait in names.items():
        if name in table.column_names:
            has = _not_empty(table[name]).to_numpy(zero_copy_only=False)
            found |= np.where(has, trait, 0).astype(np.uint8)
    return found


def _not_empty(column: Any) -> Any:
    """Booleans; of other than lists, texts and bytes, every value that is not null counts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind, types = column.type, pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        length = pc.list_value_length(column)
    elif any(getattr(types, f"is_{one}")(kind) for one in TEXTS):
        length = pc.binary_length(column)
    else:
        return pc.is_valid(column)
    return pc.greater(pc.fill_null(length, 0), 0)
