"""Pictures to the sizes that a UniCom model sees, and to raster-ordered patches."""

from __future__ import annotations

import functools
import io
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image as PilImage
from PIL import ImageCms, ImageOps
from transformers.image_processing_utils import BaseImageProcessor, BatchFeature
from transformers.image_utils import load_image

from .sequence_unicom import Picture

POLICIES = ("fixed", "naflex", "bucket", "bucket_walk")


class UnicomImageProcessor(BaseImageProcessor):
    """Resizes by a policy and cuts into patches.

    Args:
      policy: "fixed": squash to `size` x `size`. "naflex": keep the aspect ratio, at most
        `max_tokens` patches. "bucket": the nearest of a table of sizes of about `size`^2 pixels,
        filled and cropped around the centre. "bucket_walk": the same with a table whose sides are
        all multiples of `step`.
      patch: pixels on a side of a patch. pool: sides are multiples of patch * pool.
      step: pixels between the long sides of neighbouring buckets; the longest is 1 : max_ratio.
    """

    model_input_names = ["pixel_values", "image_grids"]
    _auto_class = "AutoImageProcessor"

    def __init__(
        self,
        policy: str = "fixed",
        size: int = 256,
        patch: int = 16,
        pool: int = 1,
        max_tokens: int = 1024,
        step: int = 64,
        max_ratio: float = 4.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if policy not in POLICIES:
            raise ValueError(f"policy {policy!r} is unknown; choose one of {', '.join(POLICIES)}")
        self.policy, self.size, self.patch, self.pool = policy, size, patch, pool
        self.max_tokens, self.step, self.max_ratio = max_tokens, step, max_ratio

    def preprocess(
        self, images: Picture | Sequence[Picture], *, return_tensors: str | None = None
    ) -> BatchFeature:
        """What the model sees of each picture.

        Returns:
          `pixel_values` (B, N, patch * patch * 3) in -1..1, a picture's patches in raster order and
          then zeros, and `image_grids` (B, 1, 2), its rows and columns of patches.
        """
        listed = images if isinstance(images, list | tuple) else [images]
        prepared = [self.prepare(image) for image in listed]
        data = {
            "pixel_values": pad_patches([self.pixel_values([image]) for image in prepared]),
            "image_grids": np.array([[self.grid(image)] for image in prepared], np.int64),
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def pixel_values(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Patches (N, patch * patch * 3) fp32 in -1..1 of prepared pictures, one after another."""
        if not images:
            return np.zeros((0, 3 * self.patch**2), np.float32)
        return to_unit(np.concatenate([patchify(image, self.patch) for image in images]))

    def grid(self, image: np.ndarray) -> tuple[int, int]:
        """Rows and columns of patches of a prepared picture."""
        return image.shape[0] // self.patch, image.shape[1] // self.patch

    @property
    def max_patches(self) -> int:
        """The most patches that a picture can have."""
        if self.policy == "naflex":
            return self.max_tokens // self.pool**2 * self.pool**2
        if buckets := self._buckets():
            return max(h * w for h, w in buckets) // self.patch**2
        return (self.size // self.patch) ** 2

    def target_size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that a picture is brought to."""
        if self.policy == "naflex":
            limit = self.max_tokens // self.pool**2
            return naflex_size(height, width, self.patch * self.pool, limit)
        if buckets := self._buckets():
            ratio = math.log(height / width)
            return min(buckets, key=lambda s: abs(math.log(s[0] / s[1]) - ratio))
        return self.size, self.size

    def prepare(self, image: Picture) -> np.ndarray:
        """The picture as the model sees it, (H, W, 3) uint8."""
        pixels = to_array(opened(image))
        rows, cols = pixels.shape[:2]
        height, width = self.target_size(rows, cols)
        if not self._buckets():
            return resize(pixels, height, width)
        # The part of the picture that is kept; scaling all of it would take unbounded memory.
        scale = max(height / rows, width / cols)
        covered = max(height, round(rows * scale)), max(width, round(cols * scale))
        top, left = (covered[0] - height) // 2, (covered[1] - width) // 2
        down, across = rows / covered[0], cols / covered[1]
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        return resize(pixels, height, width, box)

    def _buckets(self) -> tuple[tuple[int, int], ...]:
        """All sizes; () where the policy has no table of them."""
        tables = {"bucket": aspect_buckets, "bucket_walk": walk_buckets}
        if (table := tables.get(self.policy)) is None:
            return ()
        return table(self.size, self.patch * self.pool, self.step, self.max_ratio)


def opened(image: Picture) -> Picture:
    """The picture itself, where its file, address or base64 text is given."""
    if not isinstance(image, str | os.PathLike):
        return image
    return PilImage.open(image) if os.path.isfile(image) else load_image(str(image))


def to_array(image: Picture) -> np.ndarray:
    """(H, W, 3) uint8 sRGB of a PIL image or an array.

    A PIL image is turned as its EXIF orientation says, its ICC profile is converted to sRGB, levels
    of 16 bits and floats in [0, 1] become 8 bits, and transparency is put on white.
    """
    if isinstance(image, PilImage.Image):
        return np.asarray(_to_srgb(ImageOps.exif_transpose(image)))
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(
            f"an image must be a PIL image or a non-empty (H, W, 3) uint8 array, not {image.shape} "
            f"{image.dtype}"
        )
    return image


def _to_srgb(image: PilImage.Image) -> PilImage.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        white = 1.0 if image.mode == "F" else 65535.0
        levels = np.asarray(image)
        if not 0 <= levels.min() <= levels.max() <= white:
            raise ValueError(
                f"the levels of a picture of mode {image.mode} must be in [0, {white:g}]"
            )
        levels = np.rint(levels * (255.0 / white)).astype(np.uint8)
        return PilImage.fromarray(levels).convert("RGB")
    profile = image.info.get("icc_profile")
    if image.mode not in ("RGBA", "LA", "PA") and "transparency" not in image.info:
        return _without_profile(image, profile)
    image = image.convert("RGBA")
    colours = _without_profile(image.convert("RGB"), profile)
    colours.putalpha(image.getchannel("A"))
    paper = PilImage.new("RGBA", image.size, "white")
    return PilImage.alpha_composite(paper, colours).convert("RGB")


def _without_profile(image: PilImage.Image, profile: bytes | None) -> PilImage.Image:
    """An opaque image in sRGB; a profile that is damaged or of other colours is left out."""
    mode, transform = _transform_of(image.mode, profile)
    if transform is None or "CMYK" in {mode, image.mode} and mode != image.mode:
        return image.convert("RGB")
    return ImageCms.applyTransform(image.convert(mode), transform)


@functools.lru_cache(maxsize=64)
def _transform_of(mode: str, profile: bytes | None) -> tuple[str | None, Any]:
    """(mode, the transform from it to sRGB); no transform where it would change nothing."""
    try:
        if mode == "LAB":
            source = ImageCms.createProfile("LAB")
        elif profile is None:
            return None, None
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
        srgb, intent = ImageCms.createProfile("sRGB"), 0
        if mode != "LAB":
            intent = ImageCms.getDefaultIntent(source)
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", renderingIntent=intent)
    except (OSError, ValueError, KeyError, ImageCms.PyCMSError):
        return None, None
    if mode in ("RGB", "L"):
        steps = np.arange(0, 256, 51, dtype=np.uint8)
        cube = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
        samples = PilImage.fromarray(cube if mode == "RGB" else steps[None])
        moved = np.asarray(ImageCms.applyTransform(samples, transform)).astype(int)
        if np.abs(moved - np.asarray(samples.convert("RGB"))).max() <= 3:
            return None, None
    return mode, transform


def resize(
    image: np.ndarray,
    height: int,
    width: int,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Bilinear, antialiased where it shrinks. `box`: (left, top, right, bottom) of what is kept."""
    if image.shape[:2] == (height, width):
        return image
    picture = PilImage.fromarray(image)
    return np.asarray(picture.resize((width, height), PilImage.Resampling.BILINEAR, box))


def naflex_size(height: int, width: int, unit: int, max_tokens: int) -> tuple[int, int]:
    """The largest (height, width) of about this aspect ratio with at most `max_tokens` squares of
    `unit` pixels (SigLIP 2, arXiv 2502.14786, section 2.4)."""

    def side(length: int, scale: float) -> int:
        return min(max(1, math.ceil(length * scale / unit)), max_tokens)

    low, high = 0.0, max_tokens * unit / min(height, width)
    for _ in range(40):
        scale = (low + high) / 2
        if side(height, scale) * side(width, scale) <= max_tokens:
            low = scale
        else:
            high = scale
    return side(height, low) * unit, side(width, low) * unit


@functools.lru_cache(maxsize=16)
def aspect_buckets(
    size: int, unit: int, step: int, max_ratio: float
) -> tuple[tuple[int, int], ...]:
    """Sizes (height, width) of at most size^2 pixels, from the tallest to the widest."""
    longest = int(size * math.sqrt(max_ratio))
    wide = [
        (size * size // long // unit * unit, long) for long in range(size + step, longest + 1, step)
    ]
    wide = [(short, long) for short, long in wide if short >= unit]
    return (*[(long, short) for short, long in reversed(wide)], (size, size), *wide)


@functools.lru_cache(maxsize=16)
def walk_buckets(size: int, unit: int, step: int, max_ratio: float) -> tuple[tuple[int, int], ...]:
    """The same with all sides multiples of `step`: one side grows as the other shrinks."""
    shortest = math.ceil(size / math.sqrt(max_ratio) / step) * step
    grown = range(size + step, int(size * math.sqrt(max_ratio)) + 1, step)
    wide = [(max(2 * size - long, shortest), long) for long in grown]
    return (*[(long, short) for short, long in reversed(wide)], (size, size), *wide)


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """uint8 0..255 to fp32 -1..1."""
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1.0)


def pad_patches(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Patches (N_i, C) of several rows as one array (B, max N_i, C), padded with zeros."""
    joined = np.zeros((len(rows), max(map(len, rows)), rows[0].shape[1]), np.float32)
    for place, row in zip(joined, rows, strict=True):
        place[: len(row)] = row
    return joined


def patchify(image: np.ndarray, patch: int) -> np.ndarray:
    """(H, W, C) -> (rows * cols, patch^2 * C), each patch flattened (row, column, channel)."""
    rows, cols = image.shape[0] // patch, image.shape[1] // patch
    grid = image.reshape(rows, patch, cols, patch, -1).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(grid).reshape(rows * cols, -1)


def unpatchify(patches: np.ndarray, grid: tuple[int, int], patch: int) -> np.ndarray:
    """Inverse of `patchify`."""
    rows, cols = grid
    image = patches.reshape(rows, cols, patch, patch, -1).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(image).reshape(rows * patch, cols * patch, -1)
