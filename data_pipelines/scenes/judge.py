"""Reads a picture back into objects: the exact judge of the Scenes data set, with no learned part.

The ground is a colour that is linear in the row, fitted to the border. Pixels that differ from it
form connected components; a component's colour is the nearest of the palette. The colour gives each
pixel's soft coverage (the mixing weight between ground and colour), and the coverage's zeroth and
first moments give, for each candidate shape, the radius and the centre at which that shape has the
same area and centroid. So every candidate is drawn once, at sub-pixel precision, and the one with
the largest soft overlap wins. There is no search, and blur hardly changes area or centroid.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from scipy import ndimage

from data_pipelines.scenes.render import coverage
from data_pipelines.scenes.scene import (
    BACKGROUNDS,
    COLOURS,
    LETTER,
    LETTERS,
    PLAIN_SHAPES,
    RADII,
    SIZE_BOUNDARY,
    SceneObject,
)

_NAMES = tuple(COLOURS)
_PALETTE = np.array(list(COLOURS.values()), np.float32)
_CANDIDATES = [(shape, "") for shape in PLAIN_SHAPES] + [(LETTER, letter) for letter in LETTERS]
MIN_OVERLAP = 0.6  # below this a blob matches no shape
_MIN_AREA = 0.3  # of a small object's squared radius; less is a speck (the letter L has 1.0)
_MIN_CONTRAST = 40.0  # RGB distance from the ground below which nothing counts as an object
_RIM = 2  # pixels around a component that its soft edge may reach
_MIN_SHARE = 0.2  # of a component that a second colour needs to count as a separate object
_PURE = 60.0  # RGB distance from the palette up to which a pixel is evidence of a colour
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class FoundObject(SceneObject):
    """An object as read from a picture; `shape` is "unknown" if no shape fits.

    Attributes:
      box: (left, top, right, bottom) in pixels, right and bottom exclusive.
      overlap: soft intersection over union with the best shape, in [0, 1].
    """

    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    overlap: float = 0.0


@dataclasses.dataclass(frozen=True)
class Reading:
    """All that the judge sees: objects from top to bottom, and the name of the ground."""

    objects: tuple[FoundObject, ...]
    background: str


def read_scene(image: np.ndarray) -> Reading:
    """Reads a picture.

    Every object in the generator's own pictures is read correctly if the shorter side has at least
    40 pixels; at 64, Gaussian blur of 1 pixel or noise of 12/255 breaks about one picture in 100.

    Args:
      image: (H, W, 3) uint8.

    Raises:
      ValueError: the array is of another kind, or smaller than 16 pixels.
    """
    right_kind = image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3
    if not right_kind or min(image.shape[:2]) < 16:
        raise ValueError(
            f"judge: image is {image.dtype} {image.shape}; give (H, W, 3) uint8, at least 16 pixels"
        )
    pixels = image.astype(np.float32)
    ground = fit_ground(pixels)
    objects = []
    for whole, parts in _regions(pixels, _components(pixels, ground)):
        found = [_recognise(pixels, ground, whole)]
        pieces = [_recognise(pixels, ground, part) for part in parts]
        # A blurred object has mixed colours too: two objects must explain the region better than
        # one.
        if all(pieces) and min((p.overlap for p in pieces), default=0) > found[0].overlap:
            found = pieces
        objects += found
    return Reading(tuple(objects), _ground_name(ground))


def fit_ground(pixels: np.ndarray) -> np.ndarray:
    """The ground's colour in each row, (H, 1, 3): a robust line through the border pixels."""
    height, width = pixels.shape[:2]
    row = np.arange(height, dtype=np.float32)
    rows = np.concatenate([row, row, np.zeros(width), np.full(width, height - 1)])
    border = np.concatenate([pixels[:, 0], pixels[:, -1], pixels[0], pixels[-1]])
    terms = np.stack([np.ones_like(rows), rows / height], axis=1)
    # Start from the median colour, so that an object that reaches the border has no influence.
    keep = np.abs(border - np.median(border, axis=0)).max(axis=1) < 80
    line = np.linalg.lstsq(terms[keep], border[keep], rcond=None)[0]
    keep = np.abs(border - terms @ line).max(axis=1) < 30
    if keep.sum() >= 8:
        line = np.linalg.lstsq(terms[keep], border[keep], rcond=None)[0]
    return (np.stack([np.ones_like(row), row / height], axis=1) @ line).astype(np.float32)[:, None]


def _ground_name(ground: np.ndarray) -> str:
    ends = ground[[0, -1], 0]
    distances = {name: np.abs(ends - np.array(rows)).mean() for name, rows in BACKGROUNDS.items()}
    return min(distances, key=distances.__getitem__)


def _nearest_colour(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance to and index of the palette colour nearest to each pixel, (..., 3) to (...)."""
    # |p - c|^2 without the |p|^2 that all colours share: one small matrix product.
    scores = pixels @ (-2.0 * _PALETTE.T) + (_PALETTE**2).sum(axis=1)
    index = scores.argmin(axis=-1)
    return np.sqrt(((pixels - _PALETTE[index]) ** 2).sum(axis=-1)), index


def _components(pixels: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Connected regions that differ from the ground, (H, W) int32 labels from 1."""
    difference = np.sqrt(((pixels - ground) ** 2).sum(axis=-1))
    # The threshold is half of the full contrast, which differs from object to object: each pixel is
    # compared with the contrast that its own neighbourhood reaches.
    reach = max(3, 2 * round(0.06 * min(pixels.shape[:2])) + 1)
    contrast = ndimage.maximum_filter(ndimage.median_filter(difference, 3), size=reach)
    noise = np.median(difference)  # most of the picture is ground
    floor = max(_MIN_CONTRAST, 2.2 * noise)
    return ndimage.label(difference > np.maximum(floor, 0.5 * contrast))[0]


def _regions(pixels: np.ndarray, labels: np.ndarray) -> list[tuple[np.ndarray, list[np.ndarray]]]:
    """Masks of the components, each with its parts by colour ([] if it has only one colour)."""
    smallest = _MIN_AREA * (RADII["small"] * min(labels.shape)) ** 2
    distance, colours = _nearest_colour(pixels)
    regions = []
    for label in range(1, int(labels.max()) + 1):
        region = labels == label
        if region.sum() < smallest:
            continue
        core = ndimage.binary_erosion(region) & (distance < _PURE)
        counts = np.bincount(colours[core], minlength=len(_NAMES))
        present = np.flatnonzero(counts >= max(_MIN_SHARE * core.sum(), smallest / 2))
        parts = _territories(colours, region, core, present) if len(present) > 1 else []
        regions.append((region, parts))
    return regions


def _territories(
    colours: np.ndarray, region: np.ndarray, core: np.ndarray, present: np.ndarray
) -> list[np.ndarray]:
    """Divides a region among its main colours: each pixel goes to the nearest core pixel."""
    seeds = core & np.isin(colours, present)
    nearest = ndimage.distance_transform_edt(~seeds, return_distances=False, return_indices=True)
    owner = np.where(region, colours[tuple(nearest)], -1)
    return [owner == colour for colour in present]


def _recognise(pixels: np.ndarray, ground: np.ndarray, mask: np.ndarray) -> FoundObject:
    """The object behind a mask."""
    side = min(mask.shape)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom = max(0, rows[0] - _RIM), min(mask.shape[0], rows[-1] + 1 + _RIM)
    left, right = max(0, columns[0] - _RIM), min(mask.shape[1], columns[-1] + 1 + _RIM)
    box = (slice(top, bottom), slice(left, right))
    colour, share = _coverage_of(pixels[box], ground[top:bottom], mask[box])
    area = max(float(share.sum()), 1.0)
    x, y = np.arange(left, right, dtype=np.float32), np.arange(top, bottom, dtype=np.float32)
    cx, cy = float(share.sum(0) @ x) / area, float(share.sum(1) @ y) / area
    shape, letter, overlap, radius, cx, cy = _best_shape(share, x - cx, y - cy, area, cx, cy)
    return FoundObject(
        shape=shape,
        colour=colour,
        size="small" if radius < SIZE_BOUNDARY * side else "large",
        x=(cx + 0.5) / mask.shape[1],
        y=(cy + 0.5) / mask.shape[0],
        letter=letter,
        box=(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1),
        overlap=overlap,
    )


def _coverage_of(
    pixels: np.ndarray, ground: np.ndarray, mask: np.ndarray
) -> tuple[str, np.ndarray]:
    """Name of an object's colour and the soft coverage in its patch."""
    difference = pixels - ground
    strength = (difference**2).sum(axis=-1)
    full = mask & (strength >= np.percentile(strength[mask], 60))  # the inside, even of strokes
    seen = np.median(difference[full], axis=0)
    origin = np.broadcast_to(ground, pixels.shape)[full].mean(axis=0)
    # Mix with the colour that is seen, not the palette's: a model's red may be slightly off.
    share = (difference * seen).sum(-1) / max(float((seen**2).sum()), 1.0)
    near = ndimage.binary_dilation(mask, iterations=_RIM - 1)  # the rim, not the neighbours
    return _colour_name(seen, origin), np.where(near, np.clip(share, 0.0, 1.0), 0.0)


def _colour_name(seen: np.ndarray, origin: np.ndarray) -> str:
    """The palette colour that, mixed with the ground, best explains the observed difference from
    the ground; less mixing is preferred.

    A thin stroke that is blurred never reaches its full colour: weak yellow on black is not orange.
    """
    directions = _PALETTE - origin
    lengths = (directions**2).sum(axis=1)
    mix = np.clip((directions @ seen) / lengths, 0.4, 1.0)
    misfit = ((seen - mix[:, None] * directions) ** 2).sum(axis=1)
    return _NAMES[int(np.argmin(misfit + 0.1 * (1.0 - mix) ** 2 * lengths))]


@functools.cache
def _moments(shape: str, letter: str) -> tuple[float, float, float]:
    """Area and centroid of a shape of radius 1."""
    radius = 60.0
    axis = np.arange(-70, 71, dtype=np.float32)
    share = coverage(shape, letter, axis[None, :], axis[:, None], radius)
    area = float(share.sum())
    return (
        area / radius**2,
        float(share.sum(0) @ axis) / area / radius,
        float(share.sum(1) @ axis) / area / radius,
    )


def _best_shape(
    share: np.ndarray, x: np.ndarray, y: np.ndarray, area: float, cx: float, cy: float
) -> tuple[str, str, float, float, float, float]:
    """Shape, letter, overlap, radius and centre in pixels of the candidate that explains the
    coverage best.

    x, y: coordinates of columns and rows relative to the centroid (cx, cy).
    """
    rim = _rim(share)
    best = (UNKNOWN, "", 0.0, (area / np.pi) ** 0.5, cx, cy)
    for shape, letter in _CANDIDATES:
        unit_area, unit_x, unit_y = _moments(shape, letter)
        radius = (area / unit_area) ** 0.5
        dx, dy = unit_x * radius, unit_y * radius
        drawn = coverage(shape, letter, (x + dx)[None, :], (y + dy)[:, None], radius)
        drawn = _blurred_like(drawn, rim)
        common = float(np.minimum(share, drawn).sum())
        overlap = common / (area + float(drawn.sum()) - common)
        if overlap > best[2]:
            best = (shape, letter, overlap, radius, cx - dx, cy - dy)
    return best if best[2] >= MIN_OVERLAP else (UNKNOWN, "", *best[2:])


def _rim(share: np.ndarray) -> float:
    """The amount of partial coverage; along an edge it grows with the width of the blur."""
    return float((share * (1.0 - share)).sum())


def _blurred_like(drawn: np.ndarray, rim: float) -> np.ndarray:
    """Blurs a candidate to match the rim observed in the picture."""
    sharp = max(_rim(drawn), 1e-3)
    if rim < 1.25 * sharp:
        return drawn
    # Across a straight edge the rim is 1/6 after anti-aliasing and s / sqrt(pi) after a Gaussian of
    # width s.
    sigma = 0.3 * ((rim / sharp) ** 2 - 1.0) ** 0.5
    return ndimage.gaussian_filter(drawn, min(sigma, 3.0), mode="constant", truncate=2.5)
