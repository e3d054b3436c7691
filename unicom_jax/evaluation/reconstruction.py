"""Suite: how much of a picture survives encoder, compressor and pixel decoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unicom_jax.core.picture import Picture
from unicom_jax.evaluation.intervals import jackknife, mean_interval
from unicom_jax.evaluation.metrics import frechet_distance, psnr, ssim
from unicom_jax.evaluation.protocol import UnifiedModel
from unicom_jax.evaluation.records import Reconstruction
from unicom_jax.evaluation.scores import Score
from unicom_jax.evaluation.suite import (
    EvaluationConfig,
    Progress,
    SuiteResult,
    in_batches,
    silent,
)

PSNR_CEILING = 100.0  # dB; stands for a perfect copy, whose PSNR is infinite


def evaluate_reconstruction(
    model: UnifiedModel,
    images: Sequence[Picture],
    config: EvaluationConfig,
    *,
    encoder: UnifiedModel | None = None,
    progress: Progress = silent,
) -> SuiteResult:
    """PSNR, SSIM and Fréchet distance of reconstructions of `images`.

    A copy is compared with the picture as the encoder saw it, resized under the image policy.
    `encoder` measures the Fréchet distance (default: the model itself). Give the trained model when
    an untrained one is evaluated: distances compare only in one feature space.
    Chance is a codec that ignores its input: PSNR and SSIM of each picture against the next one.
    """
    encoder = encoder or model
    originals = [model.prepared(image) for image in images]
    copies: list[Picture] = []
    features: list[tuple[np.ndarray, np.ndarray]] = []
    for start, batch in in_batches(originals, config.batch_size, progress):
        painted = model.reconstruct(batch, seed=config.seed, first=start)
        copies.extend(painted)
        features.append((encoder.features(batch), encoder.features(painted)))
    records = [
        Reconstruction(a, b, min(psnr(a, b), PSNR_CEILING), ssim(a, b))
        for a, b in zip(originals, copies, strict=True)
    ]
    true_features, painted_features = (np.concatenate(side) for side in zip(*features, strict=True))

    def frechet(indices: np.ndarray) -> float:
        return frechet_distance(true_features[indices], painted_features[indices])

    count = len(records)
    psnrs, ssims = [r.psnr for r in records], [r.ssim for r in records]
    scores = [
        Score("reconstruction/psnr", mean_interval(psnrs), count, _of_others(originals, _psnr)),
        Score("reconstruction/ssim", mean_interval(ssims), count, _of_others(originals, ssim)),
        Score("reconstruction/frechet", jackknife(frechet, count), count),
    ]
    return SuiteResult(scores, list(records))


def _psnr(first: Picture, second: Picture) -> float:
    return min(psnr(first, second), PSNR_CEILING)


def _of_others(
    images: Sequence[Picture], measure: Callable[[Picture, Picture], float]
) -> float | None:
    """Mean measure of each picture against the next one of its size; None without such pairs."""
    pairs = zip(images, [*images[1:], images[0]], strict=True)
    values = [measure(a, b) for a, b in pairs if a.shape == b.shape]
    return float(np.mean(values)) if values else None
