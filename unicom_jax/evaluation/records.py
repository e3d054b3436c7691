"""Per-sample outcomes: dataclasses in memory, files in a run's folder `evaluation/`.

`outcomes.jsonl` has one line per sample; `records.json` has those that the report shows, with PNG
files.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from unicom_jax.core.paths import as_path
from unicom_jax.core.picture import Picture
from unicom_jax.interop.atomic import new_folder
from unicom_jax.runs.workdir import read_json

# Every record has a `key`: that of its picture's example or of its prompt. Pictures are None if
# only the outcome is kept.


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A picture and what the codec made of it, with PSNR in dB. `agreement`: share of the facts
    that a judge sees in both; None without a judge."""

    key: str
    original: Picture | None
    reconstruction: Picture | None
    psnr: float
    ssim: float
    agreement: float | None = None


@dataclasses.dataclass(frozen=True)
class Generation:
    """A picture drawn from a prompt. `correct` is None where the data set has no exact judge."""

    key: str
    category: str
    prompt: str
    image: Picture | None
    correct: bool | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Details:
    """A picture drawn from a prompt by semantics alone, and the same picture with details."""

    key: str
    prompt: str
    semantics: Picture | None
    whole: Picture | None


@dataclasses.dataclass(frozen=True)
class Editing:
    """An edit with its two verdicts; `success` is both."""

    key: str
    kind: str
    instruction: str
    before: Picture | None
    after: Picture | None
    target: Picture | None
    success: bool
    reached: bool
    unchanged: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """A question about a picture, the true answer and the model's.

    `score` is the comparison rule's score, from 0 to 1; `correct`: the score is at least 0.5.
    """

    key: str
    kind: str
    image: Picture | None
    question: str
    answer: str
    prediction: str
    score: float
    correct: bool


@dataclasses.dataclass(frozen=True)
class Caption:
    """A picture, a true caption and the model's; `overlap` is the F1 of their words."""

    key: str
    image: Picture | None
    caption: str
    prediction: str
    correct: bool
    overlap: float


@dataclasses.dataclass(frozen=True)
class Redrawing:
    """A picture, the model's description of it and its drawing of that, and its drawing of the true
    description. `cosine`, `agreement`: of picture and first drawing; None if not measured.
    `caption_kept`: share of the picture's facts that the model's description has;
    `caption_invented`: share of the facts of the description that are wrong; None if not judged.
    """

    key: str
    original: Picture | None
    caption: str
    drawing: Picture | None
    true_caption: str
    true_drawing: Picture | None
    cosine: float | None
    agreement: float | None
    caption_kept: float | None = None
    caption_invented: float | None = None


Record = Reconstruction | Generation | Details | Editing | Answer | Caption | Redrawing
OneRecord = TypeVar(
    "OneRecord", Reconstruction, Generation, Details, Editing, Answer, Caption, Redrawing
)
RECORDS_FILE = "records.json"
OUTCOMES_FILE = "outcomes.jsonl"


def kind_of(record: Record) -> str:
    """The group of a record: the kind of a question or edit, the category of a prompt."""
    return getattr(record, "kind", getattr(record, "category", ""))


class Log(list[OneRecord]):
    """The records of one suite. The first `shown` of each kind keep their pictures; the others keep
    only their outcome, so that memory does not grow with the number of samples."""

    def __init__(self, shown: int) -> None:
        super().__init__()
        self._left = collections.defaultdict(lambda: shown)

    def append(self, record: OneRecord) -> None:
        kind = kind_of(record)
        self._left[kind] -= 1
        super().append(record if self._left[kind] >= 0 else _without_pictures(record))


def _pictures(record: Record) -> list[str]:
    """Names of the fields that hold a picture."""
    names = [field.name for field in dataclasses.fields(record)]
    return [name for name in names if isinstance(getattr(record, name), np.ndarray)]


def _without_pictures(record: OneRecord) -> OneRecord:
    return dataclasses.replace(record, **dict.fromkeys(_pictures(record)))


def write_records(
    folder: str | os.PathLike[str],
    records: Mapping[str, Sequence[Record]],
    untrained: Mapping[str, Sequence[Record]] | None = None,
) -> None:
    """Writes the folder of an evaluation atomically, replacing an earlier one.

    `records.json` has one list per name, of the records that kept their pictures, kind after kind;
    pictures are paths relative to `folder`, `<list>/<index>_<field>.png`. `outcomes.jsonl` has one
    line per sample of either model, without pictures.

    Raises OSError when the disk is full; an earlier folder is then kept.
    """
    with new_folder(as_path(folder), replace=True) as part:
        plain = {name: _write_list(part, name, rows) for name, rows in records.items()}
        # ASCII only: a text may hold half of a surrogate pair, which UTF-8 cannot encode.
        (part / RECORDS_FILE).write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
        with (part / OUTCOMES_FILE).open("w", encoding="utf-8") as lines:
            for model, suites in (("trained", records), ("untrained", untrained or {})):
                for row in _outcomes(model, suites):
                    lines.write(json.dumps(row, separators=(",", ":")) + "\n")


def _outcomes(model: str, suites: Mapping[str, Sequence[Record]]) -> Iterator[dict[str, Any]]:
    for suite, rows in suites.items():
        for row in rows:
            plain = vars(_without_pictures(row))
            known = {name: value for name, value in plain.items() if value is not None}
            yield {"model": model, "suite": suite, **known}


def read_outcomes(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The lines of `folder/outcomes.jsonl`: "model" (trained, untrained), "suite", and the fields
    of the suite's record. Samples of two evaluations are paired by suite, key and question,
    instruction or prompt.

    Raises ValueError naming the file when it is not such JSON.
    """
    path = as_path(folder) / OUTCOMES_FILE
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except ValueError as error:  # neither JSON nor UTF-8
        raise ValueError(f"{path}: not valid JSON ({error}); run the evaluation again") from None


def read_records(folder: str | os.PathLike[str]) -> dict[str, list[dict[str, Any]]]:
    """Reads `folder/records.json`. Raises ValueError naming the file when it is not such JSON."""
    return read_json(as_path(folder) / RECORDS_FILE, ValueError, "run the evaluation again")


def _write_list(folder: Path, name: str, rows: Sequence[Record]) -> list[dict[str, Any]]:
    (folder / name).mkdir()
    shown: dict[str, list[Record]] = {}
    for row in rows:
        if _pictures(row):
            shown.setdefault(kind_of(row), []).append(row)
    ordered = [row for group in shown.values() for row in group]
    return [_write_row(folder, f"{name}/{index:04d}", row) for index, row in enumerate(ordered)]


def _write_row(folder: Path, stem: str, row: Record) -> dict[str, Any]:
    plain = dict(vars(row))
    for name in _pictures(row):
        plain[name] = f"{stem}_{name}.png"
        Image.fromarray(getattr(row, name)).save(folder / plain[name])
    return plain
