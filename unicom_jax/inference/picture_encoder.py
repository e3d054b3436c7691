"""`PictureEncoder`: a run's frozen encoder, which gives one vector per picture."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from flax import traverse_util
from jaxtyping import Float32

from data_pipelines.sequences.format import SequenceConfig
from unicom_jax.core.module import Params
from unicom_jax.core.picture import Picture
from unicom_jax.inference import engine
from unicom_jax.inference.arrays import in_batches, to_patches
from unicom_jax.inference.requests import as_pictures
from unicom_jax.runs.stages import EYE


@dataclasses.dataclass(frozen=True, eq=False)
class PictureEncoder:
    """Made by `encoder_in`. `params` is only the tree of the encoder, so that nothing else is kept
    in memory."""

    models: engine.Models
    params: Mapping[str, Params]
    sequence: SequenceConfig
    batch_size: int

    @cached_property
    def fingerprint(self) -> str:
        """A hash of its weights."""
        digest = hashlib.sha256()
        for path, weight in sorted(traverse_util.flatten_dict(self.params, sep="/").items()):
            digest.update(path.encode())
            digest.update(np.ascontiguousarray(weight).tobytes())
        return digest.hexdigest()[:16]

    def features(self, images: Picture | Sequence[Picture]) -> Float32[np.ndarray, "B F"]:
        """One vector per picture: pooled features."""
        patches, grids = to_patches(as_pictures(images), self.sequence)

        def run(batch: list[int]) -> list[np.ndarray]:
            seen = self.models.place((patches[batch], grids[batch]))
            found = engine.pooled_features(self.models, self.params, *seen)
            return list(np.asarray(found, np.float32))

        rows = range(len(patches))
        return np.stack(in_batches(run, rows, self.batch_size, self.models.row_devices))


def encoder_in(
    models: engine.Models, params: Mapping[str, Params], sequence: SequenceConfig, batch_size: int
) -> PictureEncoder | None:
    """The encoder among a run's weights; None: it was neither trained nor imported."""
    if EYE not in params:
        return None
    return PictureEncoder(models, {EYE: params[EYE]}, sequence, batch_size)
