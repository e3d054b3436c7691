"""Signs that a picture file is incomplete although its decoder does not complain.

Pillow's decoders fill what is missing: rows that a PNG does not have become black, blocks that a
JPEG does not have become gray, and zeros, as a download that reserved the whole length leaves them,
are decoded like any other data.
"""

from __future__ import annotations

import io
import math
import re
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image as PilImage

ZEROS = bytes(64)  # compressed data of pictures with details do not end with that many zeros
# A large plain area at the end of a WebP picture is stored as zeros. At most so many bits a pixel:
# half a bit for each of the 25 blocks of a square of 16 x 16 (VP8), one for each channel (VP8L).
_PLAIN = {b"VP8 ": 1 / 20, b"VP8L": 4.0, b"ANMF": 4.0}
PIECE = 2**20  # bytes that are decompressed at a time

_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
# Adam7: (first column, first row, column step, row step) of each pass.
_PASSES = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in a scan, all but stuffing and restarts
END_OF_ZEROS = "its end is all zeros"
_GRAY = (127, 129)  # what libjpeg puts where coefficients are missing, give or take rounding
_JUNK = bytes(range(255)) * 4  # no marker; the zero keeps a byte 0xff before it in the scan


def missing_part(data: bytes, picture: PilImage.Image) -> str:
    """What a file lacks whose picture was decoded without an error; "" if nothing is known.

    Args:
      data: the content of the file.
      picture: what Pillow made of it, as loaded, before any conversion.
    """
    match picture.format:
        case "PNG":
            return _png(data, picture)
        case "JPEG" | "MPO":
            return _jpeg(data, picture)
        case "WEBP":
            return _webp(data, picture)
        case "AVIF":
            ends = any(kind == b"mdat" and part.endswith(ZEROS) for kind, part in _boxes(data))
            return END_OF_ZEROS if ends else ""
    return ""


# ---- PNG --------------------------------------------------------------------------------------


def _png(data: bytes, picture: PilImage.Image) -> str:
    """Missing rows are zeros, so only a picture whose last row is zero is decompressed again; in an
    interlaced one, the last rows of the file are spread over the picture. Pillow does not look at
    the checksums of pixels."""
    if any(crc != zlib.crc32(content, zlib.crc32(b"IDAT")) for content, crc in _pixels(data)):
        return "the checksum of its pixels is wrong"
    interlaced = data[28] == 1
    last = picture.crop((0, picture.height - 1, picture.width, picture.height))
    if not interlaced and np.asarray(last).any():
        return ""
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    bits = depth * _PNG_CHANNELS[colour]
    needed = sum(_pass_bytes(width, height, bits, *one) for one in passes)
    found = _decompressed(data, needed)
    return f"it has {found} of {needed} bytes of pixels" if found < needed else ""


def _pass_bytes(
    width: int, height: int, bits: int, left: int, top: int, across: int, down: int
) -> int:
    columns, rows = math.ceil((width - left) / across), math.ceil((height - top) / down)
    if columns <= 0 or rows <= 0:
        return 0
    return rows * (1 + math.ceil(columns * bits / 8))  # a byte for the row's filter


def _decompressed(data: bytes, enough: int) -> int:
    """Bytes of pixels in a PNG file; counting stops at `enough`."""
    stream, found = zlib.decompressobj(), 0
    for content, _ in _pixels(data):
        while content and not stream.eof and found < enough:
            try:
                found += len(stream.decompress(content, PIECE))
            except zlib.error:
                return found
            content = stream.unconsumed_tail
    return found


def _pixels(data: bytes) -> Iterator[tuple[bytes, int]]:
    """(content, checksum) of the chunks that hold the pixels of a PNG file."""
    at = 8
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        stop = at + 8 + length
        if kind == b"IDAT" and stop + 4 <= len(data):
            yield data[at + 8 : stop], struct.unpack_from(">I", data, stop)[0]
        at = stop + 4


# ---- JPEG -------------------------------------------------------------------------------------


def _jpeg(data: bytes, picture: PilImage.Image) -> str:
    """A decoder that meets the end too early leaves the rest of the picture gray. A gray corner may
    also be in the picture; then bytes put before the end change nothing."""
    if data.endswith(ZEROS) and _end_of_scans(data) is None:
        return END_OF_ZEROS
    corner = picture.getpixel((picture.width - 1, picture.height - 1))
    levels = corner if isinstance(corner, tuple) else (corner,)
    if not all(_GRAY[0] <= level <= _GRAY[1] for level in levels):
        return ""
    if (end := _end_of_scans(data)) is None:
        return ""  # Pillow has found all blocks in a file without an end
    longer = data[:end] + _JUNK + data[end:]
    same = np.array_equal(_small(data), _small(longer))
    return "" if same else "its last rows are missing"


def _end_of_scans(data: bytes) -> int | None:
    """Where the marker that ends the first picture of a JPEG file is; None: there is none."""
    at = 2
    while at + 4 <= len(data):
        found = _MARKER.search(data, at)
        if found is None:
            return None
        at, marker = found.start(), data[found.start() + 1]
        if marker == 0xD9:
            return at
        if at + 4 > len(data):
            return None
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]  # the segment; a scan's data follow
    return None


def _small(data: bytes) -> np.ndarray:
    with PilImage.open(io.BytesIO(data)) as picture:
        picture.draft(None, (max(picture.width // 8, 1), max(picture.height // 8, 1)))
        return np.asarray(picture)


# ---- WebP and AVIF ----------------------------------------------------------------------------


def _webp(data: bytes, picture: PilImage.Image) -> str:
    """Zeros at the end of the compressed data, more than a plain picture of its size has."""
    pixels = picture.width * picture.height
    for kind, content in _riff_chunks(data):
        zeros = len(content) - len(content.rstrip(b"\0"))
        if kind in _PLAIN and zeros >= max(len(ZEROS), pixels * _PLAIN[kind] / 8):
            return END_OF_ZEROS
    return ""


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The boxes of an ISO media file."""
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        start = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        stop = at + length if length else len(data)  # 0: up to the end of the file
        yield kind, data[start:stop]
        if stop <= at:
            return
        at = stop
