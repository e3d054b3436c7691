"""Resizing policies and patches."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PilImage

from data_pipelines.images import (
    ImagePolicy,
    aspect_buckets,
    naflex_size,
    nearest_bucket,
    patchify,
    prepare,
    resize_and_crop,
    smart_size,
    unpatchify,
    walk_buckets,
)
from tests.data.samples import picture

SIDES = st.integers(1, 3000)


def test_patches_are_in_raster_order_and_flattened_row_column_channel():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    patches = patchify(image, 2)
    assert patches.shape == (6, 12)
    for row in range(2):
        for col in range(3):
            block = image[2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
            np.testing.assert_array_equal(patches[3 * row + col], block.reshape(-1))


def test_unpatchify_restores_the_image_and_ignores_padding():
    image = picture(0, 12, 8)
    padded = np.concatenate([patchify(image, 4), np.ones((3, 48), np.uint8)])
    np.testing.assert_array_equal(unpatchify(padded, 3, 2, 4), image)


@settings(max_examples=200, deadline=None)
@given(SIDES, SIDES, st.sampled_from([4, 14, 16]), st.sampled_from([1, 7, 64, 256, 1024]))
def test_naflex_sizes_fit_and_could_not_be_scaled_up(height, width, patch, limit):
    rows, cols = (side // patch for side in naflex_size(height, width, patch, limit))
    assert rows >= 1 and cols >= 1 and rows * cols <= limit
    # A scale that adds a row and a column is more than the limit allows.
    assert (rows + 1) * (cols + 1) > limit


@settings(max_examples=200, deadline=None)
@given(st.integers(50, 3000), st.integers(50, 3000))
def test_naflex_scales_both_sides_alike_and_rounds_each_up_to_the_patch(height, width):
    rows, cols = (side / 16 for side in naflex_size(height, width, 16, 1024))
    # One scale s with rows - 1 < s * height <= rows and cols - 1 < s * width <= cols. Where both
    # bounds meet (160 x 200), rounding decides whether a side is a multiple or just above it.
    assert (rows - 1) / height <= cols / width and (cols - 1) / width <= rows / height


def test_naflex_sizes_are_those_of_siglip_2():
    processing = pytest.importorskip("transformers.models.siglip2.image_processing_pil_siglip2")
    rng = np.random.default_rng(0)
    for height, width in rng.integers(20, 3000, (300, 2)).tolist():
        for limit in (64, 256, 1024):
            theirs = processing.get_image_size_for_max_num_patches(height, width, 16, limit)
            assert naflex_size(height, width, 16, limit) == tuple(theirs)


def test_smart_sizes_are_those_of_qwen2_vl():
    processing = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    rng = np.random.default_rng(0)
    for height, width in [*rng.integers(1, 3000, (300, 2)).tolist(), (14, 42), (1, 200)]:
        if max(height, width) <= 200 * min(height, width):
            for least, most in ((56**2, 28**2 * 1280), (256 * 28**2, 300 * 28**2)):
                theirs = processing.smart_resize(height, width, 28, least, most)
                assert smart_size(height, width, 28, least, most) == tuple(theirs)


def test_a_picture_too_long_for_qwen2_vl_is_refused():
    with pytest.raises(ValueError, match="a picture of 3 x 601 is longer than 1 : 200"):
        smart_size(3, 601, 28, 56**2, 28**2 * 1280)


@pytest.mark.parametrize(
    ("size", "limit", "expected"),
    [((1024, 1024), 1024, (512, 512)), ((480, 640), 256, (224, 288)), ((10, 1000), 64, (16, 1024))],
)
def test_naflex_sizes_of_known_pictures(size, limit, expected):
    assert naflex_size(*size, 16, limit) == expected


def test_buckets_around_1024_are_the_papers_33_from_1_4_to_4_1():
    buckets = aspect_buckets(1024, 16, 64)
    assert len(buckets) == len(set(buckets)) == 33
    assert buckets[0] == (2048, 512) and buckets[16] == (1024, 1024) and buckets[-1] == (512, 2048)


def test_a_walk_of_buckets_has_33_sizes_whose_sides_are_multiples_of_64():
    sizes = walk_buckets(1024, 16, 64)
    assert len(sizes) == len(set(sizes)) == 33
    assert sizes[0] == (2048, 512) and sizes[16] == (1024, 1024) and sizes[-1] == (512, 2048)
    assert sizes[8] == (1536, 512) and sizes[15] == (1088, 960)
    assert all(side % 64 == 0 for size in sizes for side in size)
    assert all(height * width <= 1024**2 for height, width in sizes)
    for before, after in zip(sizes, sizes[1:], strict=False):  # a walk of single steps
        assert {before[0] - after[0], after[1] - before[1]} <= {0, 64}
    policy = ImagePolicy("bucket_walk", size=1024, step=64)
    assert policy.target_size(100, 190, 16) == (704, 1344)
    assert policy.max_patches(16) == 4096 and policy.canvas(16) == (128, 128)


def test_buckets_are_multiples_of_the_patch_and_lose_little_area():
    for height, width in aspect_buckets(1024, 16, 64):
        assert height % 16 == width % 16 == 0
        assert 0.97 * 1024**2 <= height * width <= 1024**2


@settings(max_examples=100, deadline=None)
@given(SIDES, SIDES)
def test_the_nearest_bucket_has_the_closest_log_ratio(height, width):
    buckets = aspect_buckets(256, 16, 16)
    chosen = nearest_bucket(height, width, buckets)

    def distance(size):
        return abs(np.log(size[0] / size[1]) - np.log(height / width))

    assert distance(chosen) <= min(distance(size) for size in buckets) + 1e-9


def test_resize_and_crop_keeps_the_middle_undistorted():
    image = np.zeros((20, 60, 3), np.uint8)
    image[5:15, 25:35] = 255  # a square in the middle
    cut = resize_and_crop(image, 20, 20)
    np.testing.assert_array_equal(cut, image[:, 20:40])


@pytest.mark.parametrize(
    "policy",
    [
        ImagePolicy("fixed", size=32),
        ImagePolicy("naflex", max_tokens=36),
        ImagePolicy("bucket", size=32, step=8),
        ImagePolicy("bucket_walk", size=32, step=8),
    ],
    ids=lambda policy: policy.kind,
)
@pytest.mark.parametrize("pool", [1, 2])
@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90))
def test_every_policy_gives_pooled_patch_grids_within_its_limit(policy, pool, height, width):
    image = prepare(picture(0, height, width), policy, patch=4, pool=pool)
    assert image.shape[0] % (4 * pool) == image.shape[1] % (4 * pool) == 0
    assert image.shape[0] * image.shape[1] // 16 <= policy.max_patches(4, pool)


def test_an_unknown_policy_names_the_known_ones():
    with pytest.raises(
        ValueError,
        match="'square' is unknown; choose one of fixed, crop, pad, naflex, bucket, bucket_walk",
    ):
        ImagePolicy("square")


def test_a_size_that_is_no_multiple_of_the_patch_says_so():
    with pytest.raises(ValueError, match="image size 30 is not a multiple of 4"):
        prepare(picture(0), ImagePolicy("fixed", size=30), patch=4)


@pytest.mark.parametrize("sides", [(1, 400_000), (400_000, 1)])
def test_a_bucket_of_an_extreme_picture_takes_no_more_memory_than_the_picture(sides):
    image = np.zeros((*sides, 3), np.uint8)
    tracemalloc.start()
    made = prepare(image, ImagePolicy("bucket", size=64, step=16), patch=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert made.shape[0] * made.shape[1] <= 64**2
    assert peak < 2 * image.nbytes  # the picture that covers the bucket would be 2,000 times larger


def test_a_bucket_is_filled_as_if_the_whole_picture_were_scaled_and_cut():
    image = picture(3, 50, 90)
    covering = np.asarray(PilImage.fromarray(image).resize((115, 64), PilImage.Resampling.BILINEAR))
    made = resize_and_crop(image, 64, 64).astype(int)
    np.testing.assert_allclose(made, covering[:, 25:89], atol=1)


@pytest.mark.parametrize("sides", [(50, 90), (90, 50), (16, 16), (64, 64), (3, 700)])
def test_a_cropped_picture_has_its_short_side_at_the_size_and_its_centre_cut_out(sides):
    few = PilImage.fromarray(picture(3, 4, 4) // 2 + 64)  # smooth: nothing is clipped
    image = np.asarray(few.resize(sides[::-1], PilImage.Resampling.BILINEAR))
    made = prepare(image, ImagePolicy("crop", size=64), patch=16).astype(int)
    height, width = (max(64, round(side * 64 / min(sides))) for side in sides)
    bicubic = PilImage.Resampling.BICUBIC
    covering = np.asarray(PilImage.fromarray(image).resize((width, height), bicubic)).astype(int)
    top, left = (height - 64) // 2, (width - 64) // 2
    np.testing.assert_allclose(made, covering[top : top + 64, left : left + 64], atol=2)


@pytest.mark.parametrize(
    ("sides", "inner"),
    [((50, 90), (36, 64)), ((90, 50), (64, 36)), ((16, 16), (64, 64)), ((3, 700), (1, 64))],
)
def test_a_padded_picture_is_whole_in_the_centre_of_black(sides, inner):
    image = picture(3, *sides)
    made = prepare(image, ImagePolicy("pad", size=64), patch=16)
    bicubic = PilImage.Resampling.BICUBIC
    whole = np.asarray(PilImage.fromarray(image).resize(inner[::-1], bicubic))
    top, left = (64 - inner[0]) // 2, (64 - inner[1]) // 2
    expected = np.zeros((64, 64, 3), np.uint8)
    expected[top : top + inner[0], left : left + inner[1]] = whole
    np.testing.assert_array_equal(made, expected)


@pytest.mark.parametrize("kind", ["fixed", "crop", "pad"])
def test_a_square_picture_of_the_size_is_not_changed_by_any_square_policy(kind):
    image = picture(1, 64, 64)
    policy = ImagePolicy(kind, size=64)
    np.testing.assert_array_equal(prepare(image, policy, patch=16), image)
    assert policy.max_patches(16) == 16 and policy.canvas(16) == (4, 4)
