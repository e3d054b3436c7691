"""Per-sample outcomes: dataclasses in memory, `records.json` with PNG files beside it on disk."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unicom_jax.core.picture import Picture


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """A picture and what the codec made of it, with PSNR in dB."""

    original: Picture
    reconstruction: Picture
    psnr: float
    ssim: float


@dataclasses.dataclass(frozen=True)
class Generation:
    """A picture drawn from a prompt. `correct` is None where the data set has no exact judge."""

    category: str
    prompt: str
    image: Picture
    correct: bool | None
    reason: str


@dataclasses.dataclass(frozen=True)
class Editing:
    """An edit with its two verdicts; `success` is both."""

    kind: str
    instruction: str
    before: Picture
    after: Picture
    target: Picture
    success: bool
    reached: bool
    unchanged: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class Answer:
    """A question about a picture, the true answer and the model's."""

    kind: str
    image: Picture
    question: str
    answer: str
    prediction: str
    correct: bool


@dataclasses.dataclass(frozen=True)
class Caption:
    """A picture, a true caption and the model's."""

    image: Picture
    caption: str
    prediction: str
    correct: bool


Record = Reconstruction | Generation | Editing | Answer | Caption
RECORDS_FILE = "records.json"


def write_records(
    folder: str | os.PathLike[str], records: Mapping[str, Sequence[Record]]
) -> dict[str, list[dict[str, Any]]]:
    """Writes `folder/records.json`: a list per name; pictures become paths relative to `folder`.

    A picture lies at `<list>/<index>_<field>.png`. Returns what was written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: _write_list(folder, name, rows) for name, rows in records.items()}
    text = json.dumps(plain, indent=1, ensure_ascii=False)
    (folder / RECORDS_FILE).write_text(text + "\n", encoding="utf-8")
    return plain


def read_records(folder: str | os.PathLike[str]) -> dict[str, list[dict[str, Any]]]:
    """Reads `folder/records.json`. Raises ValueError naming the file when it is not such JSON."""
    path = Path(folder) / RECORDS_FILE
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not valid JSON ({error}); run the evaluation again") from None
    if not isinstance(records, dict):
        raise ValueError(f"{path}: expected lists of records by name; run the evaluation again")
    return records


def _write_list(folder: Path, name: str, rows: Sequence[Record]) -> list[dict[str, Any]]:
    (folder / name).mkdir(exist_ok=True)
    for stale in (folder / name).glob("*.png"):
        stale.unlink()
    return [_write_row(folder, f"{name}/{index:04d}", row) for index, row in enumerate(rows)]


def _write_row(folder: Path, stem: str, row: Record) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for field in dataclasses.fields(row):
        value = getattr(row, field.name)
        if isinstance(value, np.ndarray):
            path = f"{stem}_{field.name}.png"
            Image.fromarray(value).save(folder / path)
            value = path
        plain[field.name] = value
    return plain
