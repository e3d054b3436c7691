"""Suite: how much of a picture is preserved through the codec's latents and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.scenes.agreement import Agreement
from unicom_jax.core.picture import Picture
from unicom_jax.evaluation.intervals import mean_interval
from unicom_jax.evaluation.kernel_distance import kernel_distance
from unicom_jax.evaluation.metrics import psnr, ssim
from unicom_jax.evaluation.protocol import Encoder, UnifiedModel
from unicom_jax.evaluation.records import Log, Reconstruction
from unicom_jax.evaluation.scores import Score
from unicom_jax.evaluation.suite import (
    EvaluationConfig,
    Makes,
    Progress,
    SuiteResult,
    in_batches,
    silent,
)

PSNR_CEILING = 100.0  # dB; for a perfect copy, whose PSNR is infinite
RECONSTRUCTION = Makes(r"reconstruction/(psnr|ssim|agreement|kid)", "pictures")
BOUNDS = {"psnr": (-math.inf, PSNR_CEILING), "ssim": (-1.0, 1.0), "agreement": (0.0, 1.0)}


def evaluate_reconstruction(
    model: UnifiedModel,
    examples: Sequence[Example],
    config: EvaluationConfig,
    *,
    encoder: Encoder | None = None,
    judge: Callable[[Picture, Picture], Agreement] | None = None,
    progress: Progress = silent,
) -> SuiteResult:
    """PSNR, SSIM and kernel distance (KID) of reconstructions of the first `config.pictures`.

    A copy is compared with the picture as the model saw it, resized under the image policy.
    `encoder` measures the distance; None leaves it out. For an untrained model, pass the trained
    model's encoder: distances are comparable only in the same feature space.
    With a `judge` also agreement: facts kept over all that were kept, lost or invented.
    Chance is a codec that ignores its input: each picture against the next one.
    """
    records: Log[Reconstruction] = Log(config.shown)
    true, painted = [], []
    measures: dict[str, Callable[[Picture, Picture], float]] = {"psnr": _psnr, "ssim": ssim}
    if judge is not None:
        measures["agreement"] = lambda first, second: judge(first, second).score
    blind = _OfOthers(*measures.values())
    count = min(config.pictures, len(examples))
    for first, batch in in_batches(range(count), config.batch_size, progress):
        chosen = [examples[index] for index in batch]
        originals = [model.prepared(example.image) for example in chosen]
        copies = model.reconstruct(originals, seed=config.seed, first=first)
        if encoder is not None:
            true.append(encoder.features(originals))
            painted.append(encoder.features(copies))
        for example, original, copy in zip(chosen, originals, copies, strict=True):
            found = {name: measure(original, copy) for name, measure in measures.items()}
            records.append(Reconstruction(example.key, original, copy, **found))
            blind.add(original)
    if not records:
        return SuiteResult([], [])
    scores = []
    for name, chance in zip(measures, blind.means(), strict=True):
        values = [getattr(record, name) for record in records]
        score = mean_interval(values, bounds=BOUNDS[name])
        scores.append(Score(f"reconstruction/{name}", score, count, chance))
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
