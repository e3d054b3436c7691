"""PSNR, SSIM and retrieval against references."""

from __future__ import annotations

import numpy as np
import pytest

from unicom_jax.evaluation.metrics import psnr, retrieval_ranks, ssim

# (height, width, noise, PSNR, SSIM): `peak_signal_noise_ratio` and `structural_similarity` of
# scikit-image 0.26 with Gaussian weights, sigma 1.5 and biased covariances, on `noisy_pairs`.
SCIKIT_IMAGE = [
    (32, 48, 10, 28.345489592345206, 0.9906600481886495),
    (40, 24, 60, 13.78215286690404, 0.7769660663134957),
    (11, 11, 25, 20.753096222616367, 0.9570518085109065),
]


def noisy_pairs():
    rng = np.random.default_rng(7)
    for height, width, scale, *_ in SCIKIT_IMAGE:
        clean = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        noise = rng.normal(0, scale, clean.shape)
        yield clean, np.clip(clean + noise, 0, 255).astype(np.uint8)


def test_psnr_and_ssim_equal_scikit_image():
    for (first, second), (*_, expected_psnr, expected_ssim) in zip(
        noisy_pairs(), SCIKIT_IMAGE, strict=True
    ):
        assert psnr(first, second) == pytest.approx(expected_psnr, rel=1e-12)
        assert ssim(first, second) == pytest.approx(expected_ssim, rel=1e-12)


def test_ssim_equals_a_window_by_window_computation():
    first, second = (np.repeat(x[:16, :14, :1], 3, axis=-1) for x in next(noisy_pairs()))
    offsets = np.arange(-5, 6)
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for row in range(16 - 10):
        for column in range(14 - 10):
            square = np.s_[row : row + 11, column : column + 11, 0]
            a, b = (x[square].astype(float) for x in (first, second))
            m1, m2 = (weights * a).sum(), (weights * b).sum()
            v1, v2 = (weights * (a - m1) ** 2).sum(), (weights * (b - m2) ** 2).sum()
            cov = (weights * (a - m1) * (b - m2)).sum()
            top = (2 * m1 * m2 + 2.55**2) * (2 * cov + 7.65**2)
            values.append(top / ((m1**2 + m2**2 + 2.55**2) * (v1 + v2 + 7.65**2)))
    assert ssim(first, second) == pytest.approx(np.mean(values), rel=1e-9)


def test_equal_pictures_have_infinite_psnr_and_ssim_one():
    image = next(noisy_pairs())[0]
    assert psnr(image, image) == np.inf
    assert ssim(image, image) == pytest.approx(1.0)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_pictures_of_two_sizes_are_refused(measure):
    with pytest.raises(ValueError, match="differ in shape"):
        measure(np.zeros((16, 16, 3)), np.zeros((16, 20, 3)))


def test_ssim_refuses_pictures_smaller_than_its_window():
    with pytest.raises(ValueError, match="at least 11 pixels, got 16x8"):
        ssim(np.zeros((8, 16, 3)), np.zeros((8, 16, 3)))


def test_retrieval_ranks_count_the_nearer_keys():
    keys = np.eye(3)
    queries = np.array([[1.0, 0.1, 0.0], [1.0, 0.5, 0.0], [1.0, 0.9, 0.1]])
    assert retrieval_ranks(queries, keys).tolist() == [0, 1, 2]


def test_collapsed_features_retrieve_nothing():
    assert (retrieval_ranks(np.ones((4, 3)), np.ones((4, 3))) == 3).all()
