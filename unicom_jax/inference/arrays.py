"""Requests as arrays: pictures to patches and back, noise by place, batches of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import jax
import numpy as np

from data_pipelines import images as pictures
from data_pipelines.sequence import SequenceConfig
from unicom_jax.core.pixels import to_bytes

Item = TypeVar("Item")
Result = TypeVar("Result")


def prepared(image: np.ndarray, sequence: SequenceConfig) -> np.ndarray:
    """The picture as the encoder sees it: resized under the image policy."""
    return pictures.prepare(image, sequence.images, sequence.patch, sequence.pool)


def to_patches(
    images: Sequence[np.ndarray], sequence: SequenceConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Padded patches (B, N, C) uint8 and grids (B, 2) of prepared pictures."""
    patch = sequence.patch
    patches = np.zeros((len(images), sequence.max_patches, 3 * patch**2), np.uint8)
    grids = np.zeros((len(images), 2), np.int32)
    for row, image in enumerate(images):
        resized = prepared(image, sequence)
        cut = pictures.patchify(resized, patch)
        patches[row, : len(cut)] = cut
        grids[row] = resized.shape[0] // patch, resized.shape[1] // patch
    return patches, grids


def to_pictures(patches: jax.Array, grids: np.ndarray, patch: int) -> list[np.ndarray]:
    """Pictures (H, W, 3) uint8 of padded patches (B, N, C) in [-1, 1]."""
    return [
        pictures.unpatchify(one, int(rows), int(cols), patch)
        for one, (rows, cols) in zip(np.asarray(to_bytes(patches)), grids, strict=True)
    ]


def noise_at(seed: int, places: Iterable[int], shape: tuple[int, ...]) -> np.ndarray:
    """Noise (B, *shape) by (seed, place in the request), whatever the batch size."""
    return np.stack(
        [
            np.random.default_rng([seed, place]).standard_normal(shape, np.float32)
            for place in places
        ]
    )


def in_batches(
    run: Callable[[list[Item], int], list[Result]], items: Sequence[Item], size: int
) -> list[Result]:
    """Runs `run(batch, index of its first item)` over batches of `size`; the last is filled up.

    Few items run in one smaller batch, of a power of two, so that few programs are compiled.
    """
    size = min(size, 1 << max(len(items) - 1, 0).bit_length())
    results: list[Result] = []
    for first in range(0, len(items), size):
        batch = list(items[first : first + size])
        filled = batch + [batch[-1]] * (size - len(batch))
        results += run(filled, first)[: len(batch)]
    return results
