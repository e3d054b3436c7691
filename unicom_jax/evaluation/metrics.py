"""Measures of similarity of two pictures or two sets of features. NumPy and SciPy only."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Real
from scipy.ndimage import correlate1d

from unicom_jax.core.picture import Picture

# Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity".
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03
PEAK = 255.0


def psnr(first: Picture, second: Picture) -> float:
    """Peak signal-to-noise ratio in dB of two pictures; infinite when equal.

    Raises ValueError when the shapes differ.
    """
    first, second = _pair(first, second)
    error = float(np.mean(np.square(first - second)))
    return float("inf") if error == 0 else float(10.0 * np.log10(PEAK**2 / error))


def ssim(first: Picture, second: Picture) -> float:
    """Structural similarity in [-1, 1] of two pictures.

    Mean over windows and channels, after Wang et al. 2004: Gaussian window of 11 taps with sigma
    1.5, biased covariances, only windows fully inside. Same as scikit-image's
    `structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False)`.
    Raises ValueError when the shapes differ or a side is shorter than 11.
    """
    first, second = _pair(first, second)
    if min(first.shape[:2]) < SSIM_WINDOW:
        raise ValueError(
            f"SSIM needs sides of at least {SSIM_WINDOW} pixels, got {first.shape[1]}x"
            f"{first.shape[0]}; evaluate at a larger image size"
        )
    mean_1, mean_2 = _blur(first), _blur(second)
    variance_1 = _blur(first * first) - mean_1 * mean_1
    variance_2 = _blur(second * second) - mean_2 * mean_2
    covariance = _blur(first * second) - mean_1 * mean_2
    c1, c2 = (SSIM_K1 * PEAK) ** 2, (SSIM_K2 * PEAK) ** 2
    numerator = (2 * mean_1 * mean_2 + c1) * (2 * covariance + c2)
    denominator = (mean_1**2 + mean_2**2 + c1) * (variance_1 + variance_2 + c2)
    return float(np.mean(numerator / denominator))


def retrieval_ranks(
    queries: Real[np.ndarray, "pictures F"], keys: Real[np.ndarray, "pictures F"]
) -> Int[np.ndarray, " pictures"]:
    """For each query, how many other keys are nearer by cosine than its own.

    0 means that the pair was found. Ties count as nearer, so collapsed features score nothing.
    """
    similarity = _unit(queries) @ _unit(keys).T
    own = np.diagonal(similarity)[:, None]
    return np.sum(similarity >= own - 1e-9, axis=1) - 1


def _pair(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if first.shape != second.shape:
        raise ValueError(
            f"pictures differ in shape, {first.shape} and {second.shape}; resize one first"
        )
    return np.asarray(first, np.float64), np.asarray(second, np.float64)


def _blur(image: np.ndarray) -> np.ndarray:
    radius = SSIM_WINDOW // 2
    taps = np.exp(-0.5 * np.square(np.arange(-radius, radius + 1) / SSIM_SIGMA))
    taps /= taps.sum()
    blurred = correlate1d(correlate1d(image, taps, axis=0), taps, axis=1)
    return blurred[radius:-radius, radius:-radius]


def _unit(features: np.ndarray) -> np.ndarray:
    features = np.asarray(features, np.float64)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.maximum(norms, 1e-12)
