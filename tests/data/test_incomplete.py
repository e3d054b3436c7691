"""Incomplete picture files count as broken, also where the decoder fills the gap in silence."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image as PilImage

from data_pipelines.decoding import load_image
from data_pipelines.incomplete import missing_part
from tests.data.samples import picture

HEIGHT, WIDTH = 64, 48
NOISE = np.maximum(picture(1, HEIGHT, WIDTH), 60)


def encoded(kind, image=NOISE, **options):
    data = io.BytesIO()
    PilImage.fromarray(image).save(data, kind, **options)
    return data.getvalue()


def chunk(kind, content):
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(pixels, width=WIDTH, height=HEIGHT, interlaced=0):
    """A PNG of 8-bit RGB with a valid stream of these bytes, however many there are."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def rows(image, last=None):
    """The first rows of a picture as they are in a PNG, unfiltered."""
    return b"".join(b"\0" + row.tobytes() for row in image[:last])


def interlaced(image):
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
    parts = [image[y::down, x::across] for x, y, across, down in (*passes, (0, 1, 1, 2))]
    return [rows(part) for part in parts if part.size]


def refused(data, reason):
    with pytest.raises(ValueError, match=f"cannot read image <.*{reason}") as caught:
        load_image(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [1, 40, HEIGHT - 1])
def test_a_png_with_too_few_rows_is_refused(kept):
    needed = HEIGHT * (1 + 3 * WIDTH)
    refused(png(rows(NOISE, kept)), f"it has {kept * (1 + 3 * WIDTH)} of {needed} bytes of pixels")


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (1, 5), (5, 1), (1, 1)])
def test_an_interlaced_png_is_read_whole_and_refused_without_its_last_rows(size):
    image = NOISE[: size[0], : size[1]]
    passes = interlaced(image)
    whole = png(b"".join(passes), size[1], size[0], interlaced=1)
    np.testing.assert_array_equal(load_image(whole), image)
    last = passes[-1][: -len(passes[-1]) // len(range(1, size[0], 2) or [0])]
    refused(png(b"".join(passes[:-1]) + last, size[1], size[0], interlaced=1), "")


def test_a_png_whose_checksum_does_not_fit_its_pixels_is_refused():
    whole = encoded("PNG", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    at = whole.index(b"IEND") - 8  # the checksum of the pixels
    refused(whole[:at] + bytes(4) + whole[at + 4 :], "the checksum of its pixels is wrong")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_jpeg_that_is_cut_and_closed_by_an_end_marker_is_refused(share):
    whole = encoded("JPEG", quality=90)
    cut = whole[: int(share * len(whole))] + b"\xff\xd9"
    refused(cut, "its last rows are missing")
    refused(cut + whole, "its last rows are missing")  # another picture behind it


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG", "AVIF", "GIF"])
@pytest.mark.parametrize("share", [0.4, 0.8])
def test_a_file_of_full_length_whose_end_is_zeros_is_refused(kind, share):
    smooth = np.broadcast_to(np.arange(60, 60 + WIDTH)[:, None], (HEIGHT, WIDTH, 3))
    for image in (NOISE, (smooth + NOISE // 8).astype(np.uint8)):
        whole = encoded(kind, image)
        kept = int(share * len(whole))
        refused(whole[:kept] + bytes(len(whole) - kept), "")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *[("BMP", {}), ("GIF", {}), ("WEBP", {"lossless": True}), ("WEBP", {}), ("AVIF", {})],
        *[("JPEG2000", {}), ("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {})],
        *[("TIFF", {"compression": name}) for name in (None, "tiff_lzw", "jpeg", "packbits")],
    ],
)
def test_a_file_cut_in_half_is_refused_in_every_format(kind, options):
    whole = encoded(kind, **options)
    refused(whole[: len(whole) // 2], "")


@pytest.mark.parametrize("level", [0, 128])
def test_whole_pictures_with_black_or_gray_edges_are_read(level):
    image = NOISE.copy()
    image[20:] = level
    for kind, options in (
        *[("PNG", {}), ("PNG", {"compress_level": 0}), ("BMP", {}), ("TIFF", {})],
        *[("JPEG", {}), ("JPEG", {"progressive": True}), ("JPEG", {"quality": 100})],
        *[("WEBP", {}), ("WEBP", {"lossless": True}), ("AVIF", {}), ("GIF", {})],
    ):
        assert load_image(encoded(kind, image, **options)).shape == image.shape
        padded = encoded(kind, image, **options) + bytes(512)  # of a device that pads files
        assert load_image(padded).shape == image.shape


@pytest.mark.parametrize("options", [{}, {"lossless": True, "method": 0}])
def test_a_webp_with_a_large_plain_area_is_read(options):
    """Such an area is stored as zeros."""
    image = np.full((1536, 1024, 3), 255, np.uint8)
    image[:32] = np.tile(NOISE[:32], (1, 22, 1))[:, :1024]
    whole = encoded("WEBP", image, **options)
    assert whole.endswith(bytes(64))
    assert load_image(whole).shape == image.shape
    if not options:
        refused(whole[:4000] + bytes(len(whole) - 4000), "its end is all zeros")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16", "CMYK"])
def test_whole_pictures_of_all_modes_and_odd_sizes_are_read(mode):
    for width, height in ((1, 1), (3, 1), (1, 3), (9, 17)):
        black = np.zeros((height, width), np.uint16)
        image = PilImage.fromarray(black)
        image = image if mode == "I;16" else PilImage.new(mode, (width, height))
        kinds = ("JPEG", "TIFF") if mode == "CMYK" else ("PNG",)
        for kind in kinds:
            data = io.BytesIO()
            image.save(data, kind)
            with PilImage.open(data) as read:
                read.load()
                assert missing_part(data.getvalue(), read) == ""
