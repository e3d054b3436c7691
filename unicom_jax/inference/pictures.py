"""Writes pictures to PNG files: one, several numbered ones, or all on one contact sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from unicom_jax.core.paths import Path
from unicom_jax.core.picture import Picture

GAP = 4  # white pixels between the pictures of a sheet


def check_name(out: Path) -> Path:
    """`out`, with `.png` added if it has no ending.

    Raises:
      ValueError: it has another ending; IsADirectoryError: it is a folder.
    """
    if out.is_dir():
        raise IsADirectoryError(f"--out={out} is a folder; give the name of a PNG file in it")
    if not out.suffix:
        out = out.with_name(f"{out.name}.png")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out={out}: pictures are written as PNG; end the name in .png")
    return out


def numbered(out: Path, number: int) -> Path:
    return out.with_name(f"{out.stem}-{number}{out.suffix}")


def save(image: Picture, path: Path) -> Path:
    """Writes a PNG; creates the folder if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        Image.fromarray(image).save(file, "PNG")
    return path


def save_all(images: Sequence[Picture], out: Path, sheet: bool = False) -> list[Path]:
    """Writes `out` for one picture, `out`-1, -2, ... for several, or a sheet; returns the files."""
    if sheet:
        return [save(contact_sheet(images), out)] * len(images)
    if len(images) == 1:
        return [save(images[0], out)]
    return [save(image, numbered(out, number)) for number, image in enumerate(images, 1)]


def contact_sheet(images: Sequence[Picture]) -> Picture:
    """Pictures of any sizes in reading order, in a grid that is about as wide as it is high."""
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    high = GAP + max(image.shape[0] for image in images)
    wide = GAP + max(image.shape[1] for image in images)
    sheet = np.full((rows * high + GAP, columns * wide + GAP, 3), 255, np.uint8)
    for place, image in enumerate(images):
        row, column = divmod(place, columns)
        top, left = GAP + row * high, GAP + column * wide
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    return sheet
