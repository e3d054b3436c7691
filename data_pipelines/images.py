"""Pixels to patches: resizing under an image policy, and cutting into raster-ordered patches."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from PIL import Image as PilImage

from unicom_jax.core.image_policies import POLICIES, SQUARE

BOMB = 16
USUAL = 2**25  # pixels; camera pictures have fewer
LONGEST = 200  # the aspect ratio of a picture for Qwen2-VL
Picture = np.ndarray | PilImage.Image


@dataclasses.dataclass(frozen=True)
class ImagePolicy:
    """How a picture of any size is brought to sides that are multiples of the patch.

    Attributes:
      kind: "fixed": squash to `size` x `size`. "crop": scale the short side to `size` and cut out
        the centre. "pad": scale the long side to `size` and pad with zeros. "naflex": keep the
        aspect ratio, at most `max_tokens` patches (SigLIP 2 NaFlex). "bucket": cover the nearest of
        a table of sizes of about `size`**2 pixels and cut out the centre. "bucket_walk": the same
        with a table whose sides are all multiples of `step`.
      size: pixels; the side of the picture (`SQUARE`) or of the square bucket.
      max_tokens: the largest number of patches ("naflex").
      step: pixels between the long sides of neighbouring buckets; the paper uses 64 at size 1024.
      max_ratio: the longest bucket is 1 : max_ratio.
    """

    kind: str = "fixed"
    size: int = 64
    max_tokens: int = 1024
    step: int = 64
    max_ratio: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in POLICIES:
            raise ValueError(
                f"image policy {self.kind!r} is unknown; choose one of {', '.join(POLICIES)}"
            )

    @property
    def square(self) -> bool:
        return self.kind in SQUARE

    def buckets(self, unit: int) -> tuple[tuple[int, int], ...]:
        """All sizes of a picture under this policy; () if it has no table of sizes."""
        tables = {"bucket": aspect_buckets, "bucket_walk": walk_buckets}
        if (table := tables.get(self.kind)) is None:
            return ()
        return table(self.size, unit, self.step, self.max_ratio)

    def target_size(self, height: int, width: int, unit: int) -> tuple[int, int]:
        """The (height, width) in pixels, multiples of `unit`, to which a picture is resized."""
        if self.kind == "naflex":
            return naflex_size(height, width, unit, self.max_tokens)
        if buckets := self.buckets(unit):
            return nearest_bucket(height, width, buckets)
        if self.size % unit:
            raise ValueError(
                f"image size {self.size} is not a multiple of {unit}; make it one of the patch"
            )
        return self.size, self.size

    def max_patches(self, patch: int, pool: int = 1) -> int:
        """The most patches a picture can have under this policy: N of the batch."""
        if self.kind == "naflex":
            return self.max_tokens // pool**2 * pool**2
        if buckets := self.buckets(patch * pool):
            return max(height * width for height, width in buckets) // patch**2
        return (self.size // patch) ** 2

    def canvas(self, patch: int, pool: int = 1) -> tuple[int, int]:
        """Rows and columns of a patch grid that holds any picture under this policy."""
        if self.kind == "naflex":
            return self.max_tokens, self.max_tokens
        if buckets := self.buckets(patch * pool):
            rows, cols = (max(sides) // patch for sides in zip(*buckets, strict=True))
            return rows, cols
        return self.size // patch, self.size // patch


def decoded_size(
    policy: ImagePolicy, unit: int, scale: float, height: int, width: int
) -> tuple[int, int]:
    """The (height, width) that a decoded picture needs: `scale` times the size of the resized one.

    The other arguments are those of `ImagePolicy.target_size`.
    """
    rows, cols = policy.target_size(height, width, unit)
    return math.ceil(rows * scale), math.ceil(cols * scale)


def most_decoded(policy: ImagePolicy, patch: int, pool: int, scale: float) -> int:
    """The number of pixels above which a file is refused: `BOMB` times what a picture decoded at
    `scale` times its size under the policy needs, but never less than `USUAL`.

    A small file can hold a huge picture of one colour; decoding it takes several bytes per pixel.
    """
    needed = policy.max_patches(patch, pool) * patch**2 * max(scale, 1.0) ** 2
    return max(USUAL, math.ceil(BOMB * needed))


def prepare(image: Picture, policy: ImagePolicy, patch: int, pool: int = 1) -> np.ndarray:
    """Resizes a picture, (H, W, 3) uint8 or a Pillow image in mode RGB, to the size its policy
    requires: (rows * patch, columns * patch, 3) uint8.

    With `pool` > 1 the sides are multiples of patch * pool, so that the patch grid can be pooled;
    under "naflex" the limit still counts patches.
    """
    if not isinstance(image, PilImage.Image) and (
        image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape
    ):
        raise ValueError(
            f"an image must be a non-empty (H, W, 3) uint8 array, not {image.shape} {image.dtype}"
        )
    if policy.kind == "naflex" and pool > 1:
        policy = dataclasses.replace(policy, max_tokens=policy.max_tokens // pool**2)
    height, width = policy.target_size(*_sides(image), patch * pool)
    if policy.buckets(patch * pool):
        return resize_and_crop(image, height, width)
    match policy.kind:
        case "crop":
            return resize_and_crop(image, height, width, PilImage.Resampling.BICUBIC)
        case "pad":
            return resize_and_pad(image, height, width)
    return resize(image, height, width)


def naflex_size(height: int, width: int, patch: int, max_tokens: int) -> tuple[int, int]:
    """The largest (height, width) of about the same aspect ratio and at most max_tokens patches.

    Both are multiples of `patch`. Bisects the scale and rounds each side up (SigLIP 2, arXiv
    2502.14786, section 2.4). A side is never shorter than one patch: pictures longer than
    1 : max_tokens are squashed.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, not {max_tokens}")

    def side(length: int, scale: float) -> int:
        return min(max(1, math.ceil(length * scale / patch)), max_tokens)

    low, high = 0.0, max_tokens * patch / min(height, width)
    for _ in range(40):
        scale = (low + high) / 2
        if side(height, scale) * side(width, scale) <= max_tokens:
            low = scale
        else:
            high = scale
    return side(height, low) * patch, side(width, low) * patch


def smart_size(
    height: int, width: int, unit: int, least_pixels: int, most_pixels: int
) -> tuple[int, int]:
    """The (height, width), multiples of `unit`, to which Qwen2-VL resizes a picture.

    Each side is rounded to the nearest multiple. If the picture then has too many pixels, both
    sides are scaled down alike and rounded down; if too few, scaled and rounded up (arXiv
    2409.12191, `smart_resize` of the released code).

    Raises:
      ValueError: the picture is longer than 1 : 200.
    """
    if max(height, width) > LONGEST * min(height, width):
        raise ValueError(
            f"a picture of {height} x {width} is longer than 1 : {LONGEST}, the limit of Qwen2-VL; "
            "cut it"
        )
    rows, columns = round(height / unit), round(width / unit)
    if rows * columns * unit**2 > most_pixels:
        shrink = math.sqrt(height * width / most_pixels)
        rows, columns = (max(1, math.floor(x / shrink / unit)) for x in (height, width))
    elif rows * columns * unit**2 < least_pixels:
        grow = math.sqrt(least_pixels / (height * width))
        rows, columns = (math.ceil(x * grow / unit) for x in (height, width))
    return rows * unit, columns * unit


def resize_smart(image: Picture, unit: int, least_pixels: int, most_pixels: int) -> np.ndarray:
    """The picture, resized (bicubic) to its `smart_size`: (height, width, 3) uint8."""
    size = smart_size(*_sides(image), unit, least_pixels, most_pixels)
    return resize(image, *size, PilImage.Resampling.BICUBIC)


@functools.lru_cache(maxsize=64)
def aspect_buckets(
    size: int, unit: int, step: int, max_ratio: float = 4.0
) -> tuple[tuple[int, int], ...]:
    """Sizes (height, width) of about, but at most, size**2 pixels, up to 1 : max_ratio either way.

    Long sides grow from `size` in steps; the short side is the area over the long one, rounded down
    to `unit`. Size 1024, unit 16, step 64 and ratio 4 give the paper's 33 buckets. They are
    returned from the tallest to the widest.
    """
    _check_multiples(size, step, unit)
    longest = int(size * math.sqrt(max_ratio))
    wide = [
        (size * size // long // unit * unit, long) for long in range(size + step, longest + 1, step)
    ]
    wide = [(short, long) for short, long in wide if short >= unit]
    return (*[(long, short) for short, long in reversed(wide)], (size, size), *wide)


@functools.lru_cache(maxsize=64)
def walk_buckets(
    size: int, unit: int, step: int, max_ratio: float = 4.0
) -> tuple[tuple[int, int], ...]:
    """Sizes (height, width) of at most size**2 pixels whose sides are multiples of `step`.

    Starting from the square, one side grows by a step while the other shrinks by a step, down to
    the short side of 1 : max_ratio; then only the long side grows. Size 1024, step 64 and ratio 4
    give 33 sizes from 2048 x 512 to 512 x 2048, as in HunyuanImage 3.0 (arXiv 2509.23951), from the
    same laboratory as the paper. Those between 1 : 3 and 1 : 4 have at least 3/4 of the pixels.
    """
    _check_multiples(size, step, unit)
    if size % step:
        raise ValueError(f"bucket size {size} must be a multiple of the step {step}")
    shortest = math.ceil(size / math.sqrt(max_ratio) / step) * step
    grown = range(size + step, int(size * math.sqrt(max_ratio)) + 1, step)
    wide = [(max(2 * size - long, shortest), long) for long in grown]
    return (*[(long, short) for short, long in reversed(wide)], (size, size), *wide)


def _check_multiples(size: int, step: int, unit: int) -> None:
    if size % unit or step % unit or step < unit:
        raise ValueError(
            f"bucket size {size} and step {step} must be multiples of {unit} pixels (patch x pool)"
        )


def nearest_bucket(
    height: int, width: int, buckets: tuple[tuple[int, int], ...]
) -> tuple[int, int]:
    """The bucket with the closest log aspect ratio; the first one in a tie."""
    ratio = math.log(height / width)
    return min(buckets, key=lambda size: abs(math.log(size[0] / size[1]) - ratio))


def resize(
    image: Picture,
    height: int,
    width: int,
    filter: PilImage.Resampling = PilImage.Resampling.BILINEAR,
) -> np.ndarray:
    """(H, W, 3) uint8 to (height, width, 3), antialiased when it shrinks.

    Returns the same array if the size does not change.
    """
    if _sides(image) == (height, width):
        return np.asarray(image)
    return np.asarray(_picture(image).resize((width, height), filter))


def resize_and_pad(image: Picture, height: int, width: int) -> np.ndarray:
    """Scales the picture (bicubic) to fit into height x width, and centres it on black.

    Nothing is distorted or cut off.
    """
    rows, cols = _sides(image)
    scale = min(height / rows, width / cols)
    inner = max(1, round(rows * scale)), max(1, round(cols * scale))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    padded = np.zeros((height, width, 3), np.uint8)
    scaled = resize(image, *inner, PilImage.Resampling.BICUBIC)
    padded[top : top + inner[0], left : left + inner[1]] = scaled
    return padded


def resize_and_crop(
    image: Picture,
    height: int,
    width: int,
    filter: PilImage.Resampling = PilImage.Resampling.BILINEAR,
) -> np.ndarray:
    """Scales the picture to cover height x width and cuts out the centre.

    Nothing is distorted, but the edges along one axis are lost. Only the kept part is scaled, so
    memory does not grow with the picture's aspect ratio.
    """
    if _sides(image) == (height, width):
        return np.asarray(image)
    rows, cols = _sides(image)
    scale = max(height / rows, width / cols)
    covered = max(height, round(rows * scale)), max(width, round(cols * scale))
    top, left = (covered[0] - height) // 2, (covered[1] - width) // 2
    down, across = rows / covered[0], cols / covered[1]  # source pixels per scaled pixel
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    scaled = _picture(image).resize((width, height), filter, box)
    return np.asarray(scaled)


def _sides(image: Picture) -> tuple[int, int]:
    """(height, width)."""
    if isinstance(image, PilImage.Image):
        return image.height, image.width
    return image.shape[:2]


def _picture(image: Picture) -> PilImage.Image:
    return image if isinstance(image, PilImage.Image) else PilImage.fromarray(image)


def patchify(image: np.ndarray, patch: int) -> np.ndarray:
    """(H, W, 3) to (rows * cols, patch * patch * 3).

    Patches are in raster order, each flattened as (row, column, channel).
    """
    height, width, channels = image.shape
    if height % patch or width % patch:
        raise ValueError(
            f"image sides {height} x {width} are not multiples of the patch {patch}; resize first"
        )
    rows, cols = height // patch, width // patch
    grid = image.reshape(rows, patch, cols, patch, channels).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(grid).reshape(rows * cols, patch * patch * channels)


def unpatchify(patches: np.ndarray, rows: int, cols: int, patch: int) -> np.ndarray:
    """Inverse of `patchify`; padding after the last patch is dropped.

    (>= rows * cols, patch * patch * C) to (rows * patch, cols * patch, C).
    """
    channels = patches.shape[-1] // patch**2
    grid = (
        patches[: rows * cols].reshape(rows, cols, patch, patch, channels).transpose(0, 2, 1, 3, 4)
    )
    return np.ascontiguousarray(grid).reshape(rows * patch, cols * patch, channels)
