"""Rollouts for people to look at: each picture with its captions, their drawings and the rewards.
One strip per row for TensorBoard, files for the report.
"""

from __future__ import annotations

import dataclasses
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_pipelines.images import unpatchify
from unicom_jax.core.picture import Picture
from unicom_jax.inference.arrays import to_pictures
from unicom_jax.interop.atomic import new_folder
from unicom_jax.rl.scores import Rollout
from unicom_jax.runs.workdir import ROLLOUTS_FILE

CELL, LINE, LETTERS = 144, 13, 23  # pixels of a cell and of a line of text; letters of a line


@dataclasses.dataclass(frozen=True)
class Sample:
    """A caption, its drawing (None: none), its total reward, and each reward."""

    caption: str
    drawing: Picture | None
    reward: float
    parts: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Row:
    """A picture with the samples of its group."""

    original: Picture
    samples: tuple[Sample, ...]


def rows_of(
    rollout: Rollout, group: int, count: int, decode: Callable[[list[int]], str], patch: int
) -> list[Row]:
    """The first `count` pictures of a rollout of host arrays.

    Args:
      group: samples per picture.
      decode: turns token ids into text. `patch`: side of a patch in pixels.
    """
    originals, samples, scores = rollout.originals, rollout.samples, rollout.scores
    drawn = None
    if samples.patches is not None:
        shown = slice(0, count * group)
        drawn = to_pictures(jnp.asarray(samples.patches[shown]), originals.grids[shown], patch)

    def sample(index: int) -> Sample:
        words = samples.tokens[index]
        return Sample(
            caption=decode(words[words >= 0].tolist()),
            drawing=None if drawn is None else drawn[index],
            reward=float(scores.total[index]),
            parts={name: float(values[index]) for name, values in scores.parts.items()},
        )

    def row(first: int) -> Row:
        grid = map(int, originals.grids[first])
        original = unpatchify(originals.patches[first], *grid, patch)
        return Row(original, tuple(map(sample, range(first, first + group))))

    return [row(first) for first in range(0, len(originals.grids), group)[:count]]


def strip(row: Row) -> Picture:
    """A row as one picture: the original, then each drawing above its reward and caption."""
    cells = [(row.original, "original")]
    for one in row.samples:
        cells.append((one.drawing, f"reward {one.reward:.3f}\n{one.caption}"))
    texts = [_lines(text) for _, text in cells]
    high = CELL + LINE * (1 + max(map(len, texts)))
    sheet = Image.new("RGB", (CELL * len(cells), high), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for place, ((picture, _), lines) in enumerate(zip(cells, texts, strict=True)):
        left = place * CELL + 2
        if picture is not None:
            shown = Image.fromarray(picture)
            scale = (CELL - 4) / max(shown.size)
            size = (round(shown.width * scale), round(shown.height * scale))
            sheet.paste(shown.resize(size, Image.Resampling.NEAREST), (left, 2))
        pen.multiline_text((left, CELL + 2), "\n".join(lines), "black", font, spacing=2)
    return np.asarray(sheet)


def _lines(text: str) -> list[str]:
    wrapped = [textwrap.wrap(line, LETTERS) or [""] for line in text.split("\n")]
    return [line for lines in wrapped for line in lines]


def write_rows(folder: Path, step: int, rows: Sequence[Row]) -> None:
    """Writes files for the report, which replace earlier ones: `ROLLOUTS_FILE` in the folder has
    `step` and `rows`, in which pictures are names of PNG files in the same folder."""
    with new_folder(folder, replace=True) as part:

        def saved(picture: Picture | None, name: str) -> str | None:
            if picture is None:
                return None
            Image.fromarray(picture).save(part / name)
            return name

        plain = [
            {
                "original": saved(row.original, f"{number}.png"),
                "samples": [
                    {**vars(one), "drawing": saved(one.drawing, f"{number}_{place}.png")}
                    for place, one in enumerate(row.samples)
                ],
            }
            for number, row in enumerate(rows)
        ]
        text = json.dumps({"step": step, "rows": plain}, indent=1)
        (part / ROLLOUTS_FILE).write_text(text + "\n", encoding="utf-8")
