"""Features of a run's frozen encoder, computed before training."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np

from data_pipelines.loading.rows import DTYPES
from unicom_jax.config import ConfigError, from_json
from unicom_jax.core.module import Params
from unicom_jax.core.paths import as_path
from unicom_jax.core.pixels import to_unit
from unicom_jax.families.build import VISION, build_encoder
from unicom_jax.models.vision_encoder import VisionEncoder
from unicom_jax.runs.checkpoint import read_config, restore_params
from unicom_jax.runs.trained import source_label

AT_ONCE = 16  # pictures per call, a fixed number so that features do not depend on the others


@dataclasses.dataclass(frozen=True)
class FeatureMaker:
    """Pictures (R, M, N, P) uint8 and grids (R, M, 2) -> features (R, M, N, D). Can be pickled.

    The encoder computes in the compute_dtype of its run; each process reads its weights once.

    Attributes:
      workdir: a run whose encoder was trained or imported.
      dtype: dtype of the stored features, a key of `data_pipelines.loading.rows.DTYPES`.
    """

    workdir: str
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigError(f"--features-dtype={self.dtype}: choose {', '.join(DTYPES)}")

    def __call__(self, patches: np.ndarray, grids: np.ndarray) -> np.ndarray:
        look = _encoder(self.workdir)
        shape, real = patches.shape[:-1], grids[..., 0] > 0
        pictures, sizes = patches[real], grids[real]
        made = [
            look(pictures[start : start + AT_ONCE], sizes[start : start + AT_ONCE])
            for start in range(0, len(pictures), AT_ONCE)
        ]
        width = made[0].shape[-1] if made else look(patches[0][:1], grids[0][:1]).shape[-1]
        features = np.zeros((*shape, width), DTYPES[self.dtype])
        if made:
            features[real] = np.concatenate(made).astype(features.dtype)
        return features


@functools.lru_cache(maxsize=1)
def _encoder(workdir: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    config = from_json(read_config(as_path(workdir)))
    model = build_encoder(config)
    stage = source_label(config, as_path(workdir), VISION.part)
    abstract = model.abstract()
    params = VISION.of(restore_params(as_path(workdir), stage, abstract, VISION.read(abstract)))
    look = jax.jit(functools.partial(encode, model.vision, dtype=config.compute_dtype))

    def padded(pictures: np.ndarray, grids: np.ndarray) -> np.ndarray:
        count = len(pictures)
        fill = [(0, AT_ONCE - count)]
        pictures = np.pad(pictures, fill + [(0, 0)] * (pictures.ndim - 1))
        return np.asarray(look(params, pictures, np.pad(grids, [*fill, (0, 0)])))[:count]

    return padded


def encode(
    vision: VisionEncoder, params: Params, patches: jax.Array, grids: jax.Array, *, dtype: str
) -> jax.Array:
    """Features (B, N, D) of pictures (B, N, P) uint8, as the unified stage computes them."""
    return vision(params, to_unit(patches).astype(dtype), grids)
