"""The canvas of a drawn picture: a padded number of patches, and the space of an autoencoder.

Grids are arguments of a program and padding is masked, so pictures of any shape share a program. An
autoencoder is the exception, since it convolves whole pictures. These are placed on one of a few
canvases that are slightly larger.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from data_pipelines.images import ImagePolicy
from data_pipelines.segments import Image, Segment
from data_pipelines.sequences.format import SequenceConfig
from unicom_jax.inference.arrays import prepared
from unicom_jax.inference.prompt import power_of_two
from unicom_jax.models.paint_space import LatentSpace, PaintSpace, PixelSpace

Grid = tuple[int, int]

SIDES = 3  # canvases for wide pictures, and as many for tall ones


@dataclasses.dataclass(frozen=True)
class Canvas:
    """`patches`: N of the batch. `space`: the paint space of a picture on this canvas."""

    patches: int
    space: PaintSpace


def drawn_grid(
    segments: Sequence[Segment], size: tuple[int, int] | None, sequence: SequenceConfig, usual: int
) -> Grid:
    """Patch rows and columns of the picture to draw after `segments`.

    Args:
      size: the requested (height, width) in pixels; None: that of the last picture among the
        segments, or a square of `usual` pixels.

    Raises:
      ValueError: the model does not draw this size.
    """
    unit = sequence.patch * sequence.unit
    if size is None:
        sources = [segment.pixels for segment in segments if isinstance(segment, Image)]
        shape = prepared(sources[-1], sequence).shape[:2] if sources else (usual, usual)
    else:
        shape = size
        if sequence.images.square and tuple(size) != (usual, usual):
            raise ValueError(
                f"size {size}: this model was trained at {(usual, usual)} only; leave the size "
                "out, or train with --config.data.policy=bucket or naflex"
            )
    rows, cols = shape[0] // sequence.patch, shape[1] // sequence.patch
    if shape[0] % unit or shape[1] % unit or not 0 < rows * cols <= sequence.max_patches:
        raise ValueError(
            f"size {tuple(shape)}: sides must be multiples of {unit} and give at most "
            f"{sequence.max_patches} patches of {sequence.patch} pixels"
        )
    return rows, cols


def canvas_of(grid: Grid, space: PaintSpace, sequence: SequenceConfig) -> Canvas:
    """The canvas for a picture of rows x columns patches."""
    rows, cols = grid
    slot = sequence.unit**2  # patches of a slot
    patches = min(power_of_two(rows * cols // slot) * slot, sequence.max_patches)
    if isinstance(space, PixelSpace):
        return Canvas(patches, space)
    if rows * cols == patches and rows == cols:
        return Canvas(patches, space.of_grid(rows, cols))
    return Canvas(patches, _ragged(space, _smallest(grid, sequence)))


def _ragged(space: LatentSpace, grid: Grid) -> LatentSpace:
    return dataclasses.replace(space, rows=grid[0], cols=grid[1], ragged=True)


def _smallest(grid: Grid, sequence: SequenceConfig) -> Grid:
    """The canvas with the fewest patches that fits a grid, or the grid itself if none does."""
    fitting = [
        canvas
        for canvas in _canvases(sequence.images, sequence.patch, sequence.unit)
        if grid[0] <= canvas[0] and grid[1] <= canvas[1]
    ]
    return min(fitting, key=lambda canvas: canvas[0] * canvas[1], default=grid)


@functools.lru_cache(maxsize=16)
def _canvases(policy: ImagePolicy, patch: int, unit: int) -> tuple[Grid, ...]:
    """The canvases of a table of sizes, which neighbours share; other policies have none."""
    sizes = policy.buckets(patch * unit)
    half = len(sizes) // 2
    groups = [
        group
        for side in (sizes[:half], sizes[half + 1 :])
        for group in np.array_split(np.array(side).reshape(-1, 2), SIDES)
        if len(group)
    ]
    return tuple(tuple(int(x) for x in group.max(axis=0) // patch) for group in groups)
