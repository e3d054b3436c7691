"""Suite: how much of a picture is preserved through the codec's latents and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.examples import Example
from unicom_jax.core.picture import Picture
from unicom_jax.evaluation.intervals import mean_interval
from unicom_jax.evaluation.kernel_distance import kernel_distance
from unicom_jax.evaluation.metrics import psnr, ssim
from unicom_jax.evaluation.protocol import Encoder, UnifiedModel
from unicom_jax.evaluation.records import Log, Reconstruction
from unicom_jax.evaluation.scores import Score
from unicom_jax.evaluation.suite import (
    EvaluationConfig,
    Progress,
    SuiteResult,
    in_batches,
    silent,
)

PSNR_CEILING = 100.0  # dB; for a perfect copy, whose PSNR is infinite


def evaluate_reconstruction(
    model: UnifiedModel,
    examples: Sequence[Example],
    config: EvaluationConfig,
    *,
    encoder: Encoder | None = None,
    progress: Progress = silent,
) -> SuiteResult:
    """PSNR, SSIM and kernel distance (KID) of reconstructions of the first `config.pictures`.

    A copy is compared with the picture as the model saw it, resized under the image policy.
    `encoder` measures the distance; None leaves it out. For an untrained model, pass the trained
    model's encoder: distances are comparable only in the same feature space.
    Chance is a codec that ignores its input: PSNR and SSIM of each picture against the next one.
    """
    records: Log[Reconstruction] = Log(config.shown)
    true, painted = [], []
    blind = _OfOthers(_psnr, ssim)
    count = min(config.pictures, len(examples))
    for first, batch in in_batches(range(count), config.batch_size, progress):
        chosen = [examples[index] for index in batch]
        originals = [model.prepared(example.image) for example in chosen]
        copies = model.reconstruct(originals, seed=config.seed, first=first)
        if encoder is not None:
            true.append(encoder.features(originals))
            painted.append(encoder.features(copies))
        for example, original, copy in zip(chosen, originals, copies, strict=True):
            found = _psnr(original, copy), ssim(original, copy)
            records.append(Reconstruction(example.key, original, copy, *found))
            blind.add(original)
    if not records:
        return SuiteResult([], [])
    psnrs = mean_interval([record.psnr for record in records])
    ssims = mean_interval([record.ssim for record in records], bounds=(-1.0, 1.0))
    chance_psnr, chance_ssim = blind.means()
    scores = [
        Score("reconstruction/psnr", psnrs, count, chance_psnr),
        Score("reconstruction/ssim", ssims, count, chance_ssim),
    ]
    if encoder is not None:
        distance = kernel_distance(np.concatenate(true), np.concatenate(painted))
        scores.append(Score("reconstruction/kid", distance, count))
    return SuiteResult(scores, records)


class _OfOthers:
    """Mean measures of each picture against the next one of its size, the last against the first.

    Keeps only two pictures in memory.
    """

    def __init__(self, *measures: Callable[[Picture, Picture], float]) -> None:
        self._measures = measures
        self._first: Picture | None = None
        self._last: Picture | None = None
        self._values: list[list[float]] = []

    def add(self, picture: Picture) -> None:
        if self._last is None:
            self._first = picture
        else:
            self._compare(self._last, picture)
        self._last = picture

    def means(self) -> list[float | None]:
        """One number per measure; None if no two neighbours have the same size."""
        self._compare(self._last, self._first)
        if not self._values:
            return [None] * len(self._measures)
        return [float(np.mean(values)) for values in zip(*self._values, strict=True)]

    def _compare(self, first: Picture, second: Picture) -> None:
        if first.shape == second.shape:
            self._values.append([measure(first, second) for measure in self._measures])


def _psnr(first: Picture, second: Picture) -> float:
    return min(psnr(first, second), PSNR_CEILING)
