"""Picture files to (H, W, 3) uint8 sRGB arrays, upright and of bounded size."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import warnings
from collections.abc import Callable

import numpy as np
from PIL import Image as PilImage
from PIL import ImageCms

from data_pipelines.faults import machine_fault, one_line
from data_pipelines.incomplete import missing_part
from unicom_jax.core.paths import LFS, as_path

# Pillow warns of damage in parts that are not used, such as EXIF, and of large pictures below the
# size that it refuses. It raises if a picture cannot be read.
warnings.filterwarnings("ignore", module=r"PIL\.")

ENOUGH = 2**24  # pixels; larger pictures are reduced by an integer factor on reading
KEPT = ("PNG", "JPEG", "WEBP")  # formats whose files records store unchanged
# File name suffixes that sources take for pictures.
EXTENSIONS = ("jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tif", "tiff", "jp2")
_WITH_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
_ORIENTATION = 0x0112  # EXIF
_TURNS = {
    2: PilImage.Transpose.FLIP_LEFT_RIGHT,
    3: PilImage.Transpose.ROTATE_180,
    4: PilImage.Transpose.FLIP_TOP_BOTTOM,
    5: PilImage.Transpose.TRANSPOSE,
    6: PilImage.Transpose.ROTATE_270,
    7: PilImage.Transpose.TRANSVERSE,
    8: PilImage.Transpose.ROTATE_90,
}
_PROFILE_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
_SAME = 3  # levels of 255: a profile that moves no colour by more is treated as sRGB


def load_image(
    source: str | os.PathLike | bytes,
    smallest: Callable[[int, int], tuple[int, int]] | None = None,
    most: int | None = None,
    name: str = "",
) -> np.ndarray:
    """Reads a picture from a path or from the bytes of a file as (H, W, 3) uint8 sRGB; arguments
    and errors as for `load_picture`."""
    return np.asarray(load_picture(source, smallest, most, name))


def load_picture(
    source: str | os.PathLike | bytes,
    smallest: Callable[[int, int], tuple[int, int]] | None = None,
    most: int | None = None,
    name: str = "",
) -> PilImage.Image:
    """Reads a picture from a path or from the bytes of a file, in mode RGB and in sRGB.

    The picture is rotated by its EXIF orientation, converted from its ICC profile to sRGB, scaled
    to 8 bits from 16-bit levels or floats in [0, 1], and composited on white where transparent. A
    picture of more than `ENOUGH` pixels is reduced by an integer factor until it has fewer; Pillow
    refuses one of more than 179 million pixels. The first frame of an animation is used.

    Args:
      source: the file, or its bytes.
      smallest: (height, width) of a picture -> the least size it must keep. A JPEG is decoded at
        1/2, 1/4 or 1/8 of its size if it stays at least that large; None: at full size.
      most: the most pixels to decode, after that reduction; None: only Pillow's limit.
      name: of the file in messages, if its bytes are given; "": its size is named.

    Raises:
      ValueError: the file is missing, truncated, too large or not a picture; one line names it.
      OSError: the machine cannot read it (`faults.machine_fault`).
    """
    if isinstance(source, bytes):
        return _decoded(source, name or f"<{len(source)} bytes>", smallest, most)
    return _decoded(read_file(source), shown(source), smallest, most)


def load_file(source: str | os.PathLike | bytes) -> bytes:
    """The bytes of a picture file, checked to be decodable: unchanged if records keep its format
    (`KEPT`), else re-encoded as a PNG of the same pixels.

    Args:
      source: a path, or the bytes of the file.

    Raises:
      ValueError, OSError: as for `load_image`.
    """
    given = isinstance(source, bytes)
    data = source if given else read_file(source)
    pixels = np.asarray(_decoded(data, f"<{len(data)} bytes>" if given else shown(source)))
    with PilImage.open(io.BytesIO(data)) as picture:
        if picture.format in KEPT and not getattr(picture, "is_animated", False):
            return data
    return encode_png(pixels)


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 to PNG bytes."""
    buffer = io.BytesIO()
    PilImage.fromarray(image).save(buffer, "PNG", compress_level=3)  # twice as fast as 6, same size
    return buffer.getvalue()


def read_file(path: str | os.PathLike) -> bytes:
    """The content of a picture file; errors as for `load_image`."""
    try:
        return as_path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        if machine_fault(error):
            raise
        reason = getattr(error, "strerror", None) or one_line(error)
        raise ValueError(f"cannot read image {shown(path)}: {reason}; check the name") from error


def shown(path: str | os.PathLike) -> str:
    """A path for messages and record keys, in one line: bytes that are not UTF-8 become U+FFFD."""
    text = os.fspath(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return text.replace("\n", "\\n")


def to_srgb(picture: PilImage.Image) -> PilImage.Image:
    """Converts an opened picture to mode RGB: upright, in sRGB, composited on white.

    Raises:
      ValueError: levels outside the range of their format.
    """
    picture.load()  # first: some formats apply their orientation on loading
    profile, turn = picture.info.get("icc_profile"), _TURNS.get(_orientation(picture))
    picture = _eight_bits(picture)
    alpha = picture.mode in _WITH_ALPHA or "transparency" in picture.info
    picture = _reduced(picture.convert("RGBA") if alpha else picture)
    picture = _blended(picture, profile) if alpha else _converted(picture, profile)
    return picture if turn is None else picture.transpose(turn)


def _decoded(
    data: bytes,
    name: str,
    smallest: Callable[[int, int], tuple[int, int]] | None = None,
    most: int | None = None,
) -> PilImage.Image:
    try:
        with PilImage.open(io.BytesIO(data)) as picture:
            if picture.format == "JPEG":
                factor = max(_factor(picture), _spare(picture, smallest) if smallest else 1)
                if factor > 1:
                    picture.draft(None, (picture.width // factor, picture.height // factor))
            if most is not None and picture.width * picture.height > most:
                raise ValueError(
                    f"{picture.width} x {picture.height} pixels would be decoded, more than "
                    f"{most:,}, the most for this data.image_size: make it smaller"
                )
            picture.load()
            if missing := missing_part(data, picture):
                raise ValueError(missing)
            return to_srgb(picture)
    except MemoryError:
        raise
    except Exception as error:  # decoders raise OSError, SyntaxError, RuntimeError ...
        unknown = isinstance(error, PilImage.UnidentifiedImageError)
        if unknown and data.startswith(LFS.encode()):
            raise ValueError(
                f"cannot read image {name}: it is a pointer of Git LFS; run git lfs pull"
            ) from error
        reason = "it is not a picture that Pillow knows" if unknown else one_line(error)
        raise ValueError(
            f"cannot read image {name}: {reason}; give a whole PNG, JPEG or WebP file"
        ) from error


def _factor(picture: PilImage.Image) -> int:
    return math.ceil(math.sqrt(picture.width * picture.height / ENOUGH))


def _spare(picture: PilImage.Image, smallest: Callable[[int, int], tuple[int, int]]) -> int:
    """The largest of 1, 2, 4 and 8 by which both sides may be divided, upright or rotated, since
    EXIF may rotate the picture.
    """
    sizes = ((picture.height, picture.width), (picture.width, picture.height))
    ratio = min(
        side / least for size in sizes for side, least in zip(size, smallest(*size), strict=True)
    )
    return max(factor for factor in (1, 2, 4, 8) if factor <= max(ratio, 1))


def _reduced(picture: PilImage.Image) -> PilImage.Image:
    if (factor := _factor(picture)) == 1:
        return picture
    if other := {"1": "L", "P": "RGB"}.get(picture.mode):  # modes that cannot be reduced
        picture = picture.convert(other)
    return picture.reduce(factor)


def _orientation(picture: PilImage.Image) -> int:
    try:
        return picture.getexif().get(_ORIENTATION, 1)
    except Exception:  # EXIF that cannot be parsed: the picture itself is intact
        return 1


def _eight_bits(picture: PilImage.Image) -> PilImage.Image:
    """Converts modes with more than 8 bits per level to L, or to LA if a level is transparent."""
    if picture.mode == "F":
        values, white = np.asarray(picture), 1.0
    elif picture.mode.startswith("I"):
        values, white = np.asarray(picture), 65535.0
    else:
        return picture
    low, high = float(values.min()), float(values.max())
    if not 0 <= low <= high <= white:  # NaN included
        raise ValueError(
            f"its levels go from {low:g} to {high:g}; those of {picture.mode} files must be in "
            f"[0, {white:g}]"
        )
    made = PilImage.fromarray(np.rint(values * (255.0 / white)).astype(np.uint8))
    if isinstance(clear := picture.info.get("transparency"), int):
        made.putalpha(PilImage.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return made


def _blended(picture: PilImage.Image, profile: bytes | None) -> PilImage.Image:
    """Composites an RGBA picture on white."""
    alpha = picture.getchannel("A")
    picture = _converted(picture.convert("RGB"), profile)
    picture.putalpha(alpha)
    paper = PilImage.new("RGBA", picture.size, "white")
    return PilImage.alpha_composite(paper, picture).convert("RGB")


def _converted(picture: PilImage.Image, profile: bytes | None) -> PilImage.Image:
    """Converts a picture without transparency to sRGB."""
    if picture.mode == "LAB":
        return ImageCms.applyTransform(picture, _from_lab())
    mode, transform = _transform(profile) if profile else (None, None)
    if transform is None:  # `convert` would copy a picture that is in this mode
        return picture if picture.mode == "RGB" else picture.convert("RGB")
    if picture.mode != mode:
        if "CMYK" in (mode, picture.mode) or mode == "LAB":
            return picture.convert("RGB")  # the profile is for another colour space
        picture = picture.convert(mode)
    return ImageCms.applyTransform(picture, transform)


@functools.lru_cache(maxsize=64)
def _transform(profile: bytes) -> tuple[str | None, ImageCms.ImageCmsTransform | None]:
    """(mode, its transform to sRGB); no transform for sRGB itself and for a damaged profile.

    lcms copies a transform's cached values before using them, so threads can share one.
    """
    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _PROFILE_MODES[source.profile.xcolor_space.strip()]
        intent = ImageCms.getDefaultIntent(source)
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB", renderingIntent=intent)
        if mode not in ("RGB", "L") or not _changes_nothing(mode, transform):
            return mode, transform
    return None, None


def _changes_nothing(mode: str, transform: ImageCms.ImageCmsTransform) -> bool:
    levels = np.arange(0, 256, 51, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
    samples = PilImage.fromarray(cube) if mode == "RGB" else PilImage.fromarray(levels[None])
    moved = np.asarray(ImageCms.applyTransform(samples, transform)).astype(int)
    return bool(np.abs(moved - np.asarray(samples.convert("RGB"))).max() <= _SAME)


@functools.cache
def _from_lab() -> ImageCms.ImageCmsTransform:
    profiles = (ImageCms.createProfile(name) for name in ("LAB", "sRGB"))
    return ImageCms.buildTransform(*profiles, "LAB", "RGB")
