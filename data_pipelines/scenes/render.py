"""Draws scenes with NumPy: anti-aliased through signed distances, at any resolution.

Each shape is a function of coordinates in units of its radius (y points down) that returns a signed
distance, negative inside. Near an edge the distance in pixels is, up to second order, the covered
share of the pixel: clip(0.5 - d, 0, 1). Half-plane distances combine through max (intersection) and
min (union); this is exact near straight edges.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np

from data_pipelines.scenes.scene import BACKGROUNDS, COLOURS, RADII, Scene, SceneObject

_PALETTE = {name: np.array(rgb, np.float32) for name, rgb in COLOURS.items()}


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y) - 0.92


def _ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.sqrt(x * x + y * y) - 0.72) - 0.23


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.76


def _triangle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # Upright, apex at y = -0.9, base at y = 0.7: half-planes of the base and the two mirror-image
    # sides.
    side = (np.abs(x) * 1.6 - (y + 0.9) * 0.92) / math.hypot(1.6, 0.92)
    return np.maximum(side, y - 0.7)


def _diamond(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.abs(x) - 0.66 + np.abs(y) * 0.66) / math.hypot(1.0, 0.66)


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.maximum(x, y) - 0.92, np.minimum(x, y) - 0.28)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A pentagram's five lines are at cos 72 degrees of its radius. A point is in the star if it is
    # beyond at most one of them, so the signed distance is the second largest of the five.
    values = [x * nx + (y - 0.05) * ny for nx, ny in _STAR_NORMALS]
    largest, second = np.maximum(values[0], values[1]), np.minimum(values[0], values[1])
    for value in values[2:]:
        second = np.maximum(second, np.minimum(largest, value))
        largest = np.maximum(largest, value)
    return second - 1.03 * math.cos(math.tau / 5)


_STAR_NORMALS = [(math.sin(k * math.tau / 5), -math.cos(k * math.tau / 5)) for k in range(5)]


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # A square standing on its corner, with a half disc on each of the two upper sides.
    half = 0.72
    x, y = np.abs(x), y - 0.08
    square = (x + np.abs(y) - half) * math.sqrt(0.5)
    disc = np.sqrt((x - half / 2) ** 2 + (y + half / 2) ** 2) - half * math.sqrt(0.5)
    return np.minimum(square, disc)


def _arc(
    cx: float, cy: float, radius: float, start: float, stop: float, pieces: int
) -> list[tuple[float, float]]:
    """Points of an arc; degrees clockwise from the right, because y points down."""
    angles = [math.radians(start + (stop - start) * i / pieces) for i in range(pieces + 1)]
    return [(cx + radius * math.cos(a), cy + radius * math.sin(a)) for a in angles]


# Letters as pen strokes (polylines) inside the unit circle.
_STROKE = 0.19  # half the pen's width
_LETTERS: dict[str, list[list[tuple[float, float]]]] = {
    "A": [[(-0.56, 0.74), (0.0, -0.74), (0.56, 0.74)], [(-0.36, 0.24), (0.36, 0.24)]],
    "C": [_arc(0.04, 0.0, 0.7, -48, -312, 9)],
    "E": [
        [(0.48, -0.72), (-0.42, -0.72), (-0.42, 0.72), (0.48, 0.72)],
        [(-0.42, 0.0), (0.36, 0.0)],
    ],
    "H": [
        [(-0.52, -0.74), (-0.52, 0.74)],
        [(0.52, -0.74), (0.52, 0.74)],
        [(-0.52, 0.0), (0.52, 0.0)],
    ],
    "L": [[(-0.4, -0.74), (-0.4, 0.72), (0.5, 0.72)]],
    "S": [_arc(0.0, -0.37, 0.37, -25, -270, 6) + _arc(0.0, 0.37, 0.37, -90, 155, 6)[1:]],
    "T": [[(-0.6, -0.72), (0.6, -0.72)], [(0.0, -0.72), (0.0, 0.76)]],
    "U": [[(-0.5, -0.74), (-0.5, 0.26), *_arc(0.0, 0.24, 0.5, 180, 0, 5), (0.5, -0.74)]],
}
_SEGMENTS = {
    letter: np.array(
        [a + b for line in lines for a, b in zip(line, line[1:], strict=False)], np.float32
    )
    for letter, lines in _LETTERS.items()
}


def _letter(letter: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the nearest stroke: project each point on every segment and clip to its ends."""
    ax, ay, bx, by = (_SEGMENTS[letter][:, i, None, None] for i in range(4))
    ux, uy = bx - ax, by - ay
    x, y = x - ax, y - ay
    along = np.clip((x * ux + y * uy) / (ux * ux + uy * uy), 0.0, 1.0)
    x = x - along * ux
    y = y - along * uy
    return np.sqrt((x * x + y * y).min(axis=0)) - _STROKE


_DISTANCES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "diamond": _diamond,
    "heart": _heart,
}


def coverage(shape: str, letter: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Covered share of pixels.

    Args:
      shape: one of SHAPES; letter: which letter, for the shape "letter".
      x, y: pixel centres relative to the object's centre, (1, w) and (h, 1) float32, in pixels.
      radius: of the object, in pixels.

    Returns:
      (h, w) float32 in [0, 1].
    """
    x, y = x / radius, y / radius
    distance = _letter(letter, x, y) if letter else _DISTANCES[shape](x, y)
    return np.clip(0.5 - radius * distance, 0.0, 1.0)


@functools.lru_cache(maxsize=64)
def _background(name: str, height: int) -> np.ndarray:
    """(height, 1, 3) float32: the vertical gradient of a background."""
    top, bottom = (np.array(rgb, np.float32) for rgb in BACKGROUNDS[name])
    ground = top + (bottom - top) * np.linspace(0.0, 1.0, height, dtype=np.float32)[:, None, None]
    ground.setflags(write=False)  # the cache hands out one array to all
    return ground


def draw_object(canvas: np.ndarray, item: SceneObject) -> None:
    """Blends an object over a (H, W, 3) float32 canvas in place, inside its bounding box."""
    height, width = canvas.shape[:2]
    radius = RADII[item.size] * min(height, width)
    cx, cy = (
        item.x * width - 0.5,
        item.y * height - 0.5,
    )  # pixel i covers [i, i + 1), so its centre is i + 0.5
    left, right = max(0, math.floor(cx - radius)), min(width, math.ceil(cx + radius) + 1)
    top, bottom = max(0, math.floor(cy - radius)), min(height, math.ceil(cy + radius) + 1)
    x = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(cx)
    y = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(cy)
    share = coverage(item.shape, item.letter, x, y, radius)[..., None]
    patch = canvas[top:bottom, left:right]
    patch += share * (_PALETTE[item.colour] - patch)


def render(scene: Scene, height: int | None = None, width: int | None = None) -> np.ndarray:
    """Draws a scene.

    Args:
      scene: what to draw.
      height, width: pixels; None: the scene's own. Objects cannot overlap at the scene's own aspect
        ratio.

    Returns:
      (height, width, 3) uint8, sRGB.
    """
    height, width = height or scene.height, width or scene.width
    canvas = np.empty((height, width, 3), np.float32)
    canvas[:] = _background(scene.background, height)
    for item in scene.objects:
        draw_object(canvas, item)
    canvas += 0.5
    return canvas.astype(np.uint8)
