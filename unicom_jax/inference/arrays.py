"""Requests as arrays: pictures to patches and back, noise by place, batches of fixed size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32, UInt8

from data_pipelines import images as pictures
from data_pipelines.sequences.format import SequenceConfig
from unicom_jax.core.picture import Picture
from unicom_jax.core.pixels import to_bytes

Result = TypeVar("Result")

LATENTS, PIXELS = 0, 1  # the noise streams that one picture uses


def prepared(image: Picture, sequence: SequenceConfig) -> Picture:
    """The picture as the encoder sees it: resized under the image policy."""
    return pictures.prepare(image, sequence.images, sequence.patch, sequence.unit)


def to_patches(
    images: Sequence[Picture], sequence: SequenceConfig
) -> tuple[UInt8[np.ndarray, "B N C"], Int32[np.ndarray, "B 2"]]:
    """Padded patches and grids of prepared pictures."""
    patch = sequence.patch
    patches = np.zeros((len(images), sequence.max_patches, 3 * patch**2), np.uint8)
    grids = np.zeros((len(images), 2), np.int32)
    for row, image in enumerate(images):
        resized = prepared(image, sequence)
        cut = pictures.patchify(resized, patch)
        patches[row, : len(cut)] = cut
        grids[row] = resized.shape[0] // patch, resized.shape[1] // patch
    return patches, grids


def to_pictures(
    patches: Float[Array, "B N C"], grids: Int[np.ndarray, "B 2"], patch: int
) -> list[Picture]:
    """Pictures from padded patches in [-1, 1]."""
    return [
        pictures.unpatchify(one, int(rows), int(cols), patch)
        for one, (rows, cols) in zip(np.asarray(to_bytes(patches)), grids, strict=True)
    ]


def noise_at(
    seed: int, places: Iterable[int], stream: int, shape: tuple[int, ...]
) -> list[Float32[np.ndarray, ...]]:
    """Unit Gaussian noise of `shape` for every place of a request, independent of the batch size.

    (seed, stream, place) is hashed by NumPy's `SeedSequence`, so no two of them share noise.
    """

    def draw(place: int) -> np.ndarray:
        source = np.random.SeedSequence(seed, spawn_key=(stream, place))
        return np.random.default_rng(source).standard_normal(shape, np.float32)

    return [draw(place) for place in places]


def derived_seed(seed: int, *path: int) -> int:
    """A separate seed for a part of a request, such as a turn of a conversation, by hashing."""
    return int(np.random.SeedSequence(seed, spawn_key=path).generate_state(1)[0])


def padded_rows(
    parts: Sequence[Float32[np.ndarray, "n C"]], rows: int
) -> Float32[np.ndarray, "B {rows} C"]:
    """Arrays of different lengths in one batch, padded with zeros."""
    out = np.zeros((len(parts), rows, parts[0].shape[-1]), np.float32)
    for row, part in enumerate(parts):
        out[row, : len(part)] = part
    return out


def in_batches(
    run: Callable[[list[int]], list[Result]], items: Sequence[int], size: int, multiple: int = 1
) -> list[Result]:
    """Runs `run(some of the items)` over batches of `size`; the last one is padded.

    A few items run in one smaller batch, of a power of two, so that few programs are compiled.

    Args:
      items: numbers of requests.
      multiple: divides the size of every batch: the number of devices that take rows.
    """
    size = min(size, 1 << max(len(items) - 1, 0).bit_length())
    size = -(-size // multiple) * multiple
    results: list[Result] = []
    for first in range(0, len(items), size):
        batch = list(items[first : first + size])
        filled = batch + [batch[-1]] * (size - len(batch))
        results += run(filled)[: len(batch)]
    return results
