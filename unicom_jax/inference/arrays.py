"""Requests as arrays: pictures to patches and back, noise by place, batches of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Array, Float, Float32, Int, Int32, UInt8

from data_pipelines import images as pictures
from data_pipelines.sequences.sequence import SequenceConfig
from unicom_jax.core.picture import Picture
from unicom_jax.core.pixels import to_bytes

Item = TypeVar("Item")
Result = TypeVar("Result")


def prepared(image: Picture, sequence: SequenceConfig) -> Picture:
    """The picture as the encoder sees it: resized under the image policy."""
    return pictures.prepare(image, sequence.images, sequence.patch, sequence.pool)


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
    """Pictures of padded patches in [-1, 1]."""
    return [
        pictures.unpatchify(one, int(rows), int(cols), patch)
        for one, (rows, cols) in zip(np.asarray(to_bytes(patches)), grids, strict=True)
    ]


def noise_at(
    seed: int, places: Iterable[int], shape: tuple[int, ...]
) -> Float32[np.ndarray, "B ..."]:
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
