"""Picture files as the model sees them: upright, in sRGB, in 8 bits, of bounded size."""

from __future__ import annotations

import errno
import functools
import io
import struct

import numpy as np
import pytest
from PIL import Image as PilImage

from data_pipelines import decoding
from data_pipelines.decoding import load_file, load_image
from data_pipelines.images import USUAL, ImagePolicy, decoded_size, most_decoded, prepare
from tests.data.samples import picture

T = PilImage.Transpose
STORED = {  # how an upright picture is stored under each EXIF orientation
    1: None,
    2: T.FLIP_LEFT_RIGHT,
    3: T.ROTATE_180,
    4: T.FLIP_TOP_BOTTOM,
    5: T.TRANSPOSE,
    6: T.ROTATE_90,
    7: T.TRANSVERSE,
    8: T.ROTATE_270,
}


def encoded(image, kind, **options):
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def test_load_image_reads_paths_and_bytes_alike(tmp_path):
    image = picture(1)
    path = tmp_path / "a.png"
    PilImage.fromarray(image).save(path)
    np.testing.assert_array_equal(load_image(path), image)
    np.testing.assert_array_equal(load_image(path.read_bytes()), image)


def test_transparent_pixels_are_composited_on_white():
    data = io.BytesIO()
    PilImage.new("RGBA", (2, 2), (255, 0, 0, 0)).save(data, "PNG")
    assert (load_image(data.getvalue()) == 255).all()


def test_a_truncated_image_is_named_in_one_line(tmp_path):
    path = tmp_path / "cut.png"
    data = io.BytesIO()
    PilImage.fromarray(picture(2, 64, 64)).save(data, "PNG")
    path.write_bytes(data.getvalue()[:500])
    with pytest.raises(ValueError, match="cannot read image .*cut.png: .*; give") as error:
        load_image(path)
    assert "\n" not in str(error.value)


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(ValueError, match="cannot read image .*nowhere.png"):
        load_image(tmp_path / "nowhere.png")


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("tag", STORED)
def test_a_picture_stands_upright_whatever_its_exif_orientation(tag, kind):
    upright = PilImage.fromarray(picture(5, 12, 8))
    exif = PilImage.Exif()
    exif[0x0112] = tag
    stored = upright if STORED[tag] is None else upright.transpose(STORED[tag])
    options = {"lossless": True} if kind == "WEBP" else {}
    read = load_image(encoded(stored, kind, exif=exif, **options))
    np.testing.assert_array_equal(read, np.asarray(upright))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_exif_that_cannot_be_parsed_leaves_the_picture_as_it_is():
    image = picture(6, 12, 8)
    data = encoded(PilImage.fromarray(image), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff\1")
    np.testing.assert_array_equal(load_image(data), image)


def test_sixteen_bit_levels_are_scaled_to_eight():
    levels = np.array([[0, 257 * 100, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        read = load_image(encoded(PilImage.fromarray(levels), kind))
        assert read[0, :, 0].tolist() == [0, 100, 255] and read.shape == (1, 3, 3)


def test_floats_between_zero_and_one_are_scaled_and_others_are_refused():
    levels = np.array([[0, 0.5, 1]], np.float32)
    assert load_image(encoded(PilImage.fromarray(levels), "TIFF"))[0, :, 0].tolist() == [
        0,
        128,
        255,
    ]
    for wrong in (levels * 255, levels - 1, levels + np.nan):
        with pytest.raises(ValueError, match=r"levels go from .*; those of F files must be in"):
            load_image(encoded(PilImage.fromarray(wrong), "TIFF"))


# ---- colours ----------------------------------------------------------------------------------

SRGB = ((0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))


def profile(red, green, blue, gamma=2.2):
    """An ICC profile of a screen with these primaries (X, Y, Z)."""

    def fixed(*values):
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    name = b"mluc\0\0\0\0" + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", 8, 28)
    name += "test".encode("utf-16-be")
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, int(gamma * 256)) + b"\0\0"
    tags = {b"desc": name, b"cprt": name, b"wtpt": b"XYZ \0\0\0\0" + fixed(0.9642, 1.0, 0.8249)}
    for letter, primary in ((b"r", red), (b"g", green), (b"b", blue)):
        tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + fixed(*primary)
        tags[letter + b"TRC"] = curve
    table, body, start = b"", b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        table += tag + struct.pack(">II", start + len(body), len(content))
        body += content
    head = struct.pack(
        ">I4sI4s4s4s12s4s",
        start + len(body),
        b"lcms",
        0x04300000,
        *(b"mntr", b"RGB ", b"XYZ ", b"\0" * 12, b"acsp"),
    )
    head += b"\0" * 28 + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


SWAPPED = profile(SRGB[1], SRGB[0], SRGB[2])  # red and green change places


@pytest.mark.parametrize("alpha", [False, True])
def test_an_icc_profile_is_converted_to_srgb(alpha):
    colour = PilImage.new("RGBA" if alpha else "RGB", (4, 4), (0, 255, 0))
    read = load_image(encoded(colour, "PNG", icc_profile=SWAPPED))
    np.testing.assert_allclose(read[0, 0], (255, 0, 0), atol=3)


def test_a_profile_that_is_srgb_or_damaged_changes_no_level():
    image = picture(7)
    srgb = decoding.ImageCms.ImageCmsProfile(decoding.ImageCms.createProfile("sRGB")).tobytes()
    for data in (srgb, SWAPPED[:90], b"no profile"):
        read = load_image(encoded(PilImage.fromarray(image), "PNG", icc_profile=data))
        np.testing.assert_array_equal(read, image)


def test_a_profile_of_other_colours_than_the_pictures_is_left_out():
    gray = PilImage.new("CMYK", (4, 4), (0, 0, 0, 128))
    plain = load_image(encoded(gray, "TIFF"))
    np.testing.assert_array_equal(load_image(encoded(gray, "TIFF", icc_profile=SWAPPED)), plain)


def test_lab_is_read():
    lab = PilImage.merge("LAB", [PilImage.new("L", (4, 4), level) for level in (255, 128, 128)])
    np.testing.assert_allclose(load_image(encoded(lab, "TIFF")), 255, atol=2)


# ---- size -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("mode", ["1", "L", "RGB"])
def test_a_picture_with_more_pixels_than_any_policy_needs_is_reduced(monkeypatch, kind, mode):
    monkeypatch.setattr(decoding, "ENOUGH", 1000)
    read = load_image(encoded(PilImage.new(mode, (80, 50), "white"), kind))
    assert read.shape[0] * read.shape[1] <= 1000 and (read == 255).all()
    assert read.shape[1] / read.shape[0] == pytest.approx(1.6, abs=0.1)


@pytest.mark.parametrize(
    ("least", "expected"),
    [(1, 8), (60, 8), (61, 4), (120, 4), (121, 2), (240, 2), (241, 1), (900, 1)],
)
@pytest.mark.parametrize("turned", [False, True])
def test_a_jpeg_is_decoded_as_small_as_it_may_be(least, expected, turned):
    exif = PilImage.Exif()
    exif[0x0112] = 6 if turned else 1
    image = PilImage.fromarray(picture(0, 12, 16)).resize((640, 480), PilImage.Resampling.BICUBIC)
    whole, lossless = encoded(image, "JPEG", exif=exif), encoded(image, "PNG", exif=exif)
    found = load_image(whole, lambda height, width: (least, least))
    sides = (640, 480) if turned else (480, 640)
    assert found.shape == (sides[0] // expected, sides[1] // expected, 3)
    assert load_image(lossless, lambda height, width: (least, least)).shape[:2] == sides


def test_a_jpeg_that_is_decoded_smaller_is_nearly_the_same_once_it_is_resized():
    policy, unit = ImagePolicy("bucket", 64, step=16), 16
    image = PilImage.fromarray(picture(0, 12, 20)).resize((1000, 600), PilImage.Resampling.BICUBIC)
    data = encoded(image, "JPEG", quality=95)
    reduced = load_image(data, functools.partial(decoded_size, policy, unit, 2.0))
    assert reduced.shape == (150, 250, 3)
    one, other = (
        prepare(pixels, policy, unit).astype(int) for pixels in (load_image(data), reduced)
    )
    assert np.abs(one - other).mean() < 1.5


def test_a_decompression_bomb_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(PilImage, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match="cannot read image .*exceeds limit of 2000") as caught:
        load_image(encoded(PilImage.new("1", (100, 100)), "PNG"))
    assert "\n" not in str(caught.value)


# ---- files that are kept ----------------------------------------------------------------------


def test_the_largest_picture_follows_from_the_image_policy():
    assert most_decoded(ImagePolicy("fixed", size=64), 16, 1, 2.0) == USUAL  # any camera's
    assert most_decoded(ImagePolicy("crop", size=1024), 16, 1, 2.0) == 64 * 1024**2
    assert most_decoded(ImagePolicy("naflex", max_tokens=4096), 32, 2, 1.0) == 16 * 4096 * 32**2


@pytest.mark.parametrize(("kind", "refused"), [("PNG", True), ("WEBP", True), ("JPEG", False)])
def test_a_picture_is_refused_by_the_pixels_that_decoding_it_would_take(kind, refused):
    data = encoded(PilImage.new("RGB", (640, 480)), kind)
    read = functools.partial(load_image, smallest=lambda *_: (32, 32), most=320 * 240)
    if not refused:  # decoded at an eighth
        assert read(data).shape == (60, 80, 3)
        return
    with pytest.raises(ValueError, match=r"640 x 480 pixels would be decoded, more than 76,800"):
        read(data)


@pytest.mark.parametrize("kind", decoding.KEPT)
def test_the_bytes_of_a_usual_picture_file_are_kept(tmp_path, kind):
    path = tmp_path / "a"
    path.write_bytes(encoded(PilImage.fromarray(picture(8)), kind))
    assert load_file(path) == path.read_bytes()


def test_a_file_of_another_format_becomes_a_png_of_the_same_pixels(tmp_path):
    path = tmp_path / "a.tif"
    path.write_bytes(encoded(PilImage.fromarray(picture(9)), "TIFF"))
    data = load_file(path)
    assert data.startswith(b"\x89PNG")
    np.testing.assert_array_equal(load_image(data), picture(9))


def test_a_hollow_avif_is_refused_in_one_line():
    data = encoded(PilImage.fromarray(picture(10, 48, 48)), "AVIF")
    start = data.index(b"mdat") + 4
    with pytest.raises(ValueError, match="cannot read image <") as caught:
        load_image(data[:start] + bytes(len(data) - start))
    assert "\n" not in str(caught.value)


def test_a_fault_of_the_machine_is_no_fault_of_the_picture(tmp_path, monkeypatch):
    def fails(self):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("pathlib.Path.read_bytes", fails)
    with pytest.raises(OSError, match="Input/output error"):
        load_image(tmp_path / "a.png")


# ---- the exported model's processor -----------------------------------------------------------


def oddities():
    upright = PilImage.fromarray(picture(11, 20, 12))
    exif = PilImage.Exif()
    exif[0x0112] = 6
    wide = np.linspace(0, 65535, 240).astype(np.uint16).reshape(20, 12)
    return {
        "turned": encoded(upright, "PNG", exif=exif),
        "profile": encoded(upright, "PNG", icc_profile=SWAPPED),
        "profile and alpha": encoded(upright.convert("RGBA"), "PNG", icc_profile=SWAPPED),
        "sixteen bits": encoded(PilImage.fromarray(wide), "PNG"),
        "float": encoded(PilImage.fromarray((wide / 65535).astype(np.float32)), "TIFF"),
        "palette": encoded(upright.quantize(8), "PNG"),
        "print": encoded(upright.convert("CMYK"), "TIFF"),
        "gray and alpha": encoded(upright.convert("LA"), "PNG"),
    }


@pytest.mark.parametrize("name", oddities())
def test_the_exported_processor_sees_the_pixels_that_training_saw(name):
    processing = pytest.importorskip("unicom_jax.interop.pytorch.image_processing_unicom")
    data = oddities()[name]
    options = {"policy": "bucket", "size": 16, "patch": 4, "step": 4}
    processor = processing.UnicomImageProcessor(**options)
    policy = ImagePolicy("bucket", size=16, step=4)
    seen = processor.prepare(PilImage.open(io.BytesIO(data)))
    np.testing.assert_array_equal(seen, prepare(load_image(data), policy, patch=4))
