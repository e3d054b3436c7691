"""What the soak trains on: records of which some are broken, batches of which some are not finite.

Both belong to the data, so the undisturbed run has them too. The batches are corrupted from
outside, where the run opens its loader.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
from array_record.python import array_record_module
from ml_collections import ConfigDict

from data_pipelines.build import open_examples
from data_pipelines.loading.loader import Loader
from data_pipelines.sources.records import SUFFIX, WRITER_OPTIONS, encode_example
from experiments import base

BEFORE, STAGE = "encoder,codec", "pretrain"
EXAMPLES = 96
BROKEN = (5, 23, 24, 71)  # records
SAVE_EVERY, LOG_EVERY, MAX_SKIPPED = 5, 4, 3


@dataclasses.dataclass(frozen=True)
class Poison:
    """Batches whose loss is NaN.

    Attributes:
      alone: here and there; each is a step that is skipped.
      long: so many one after the other that training goes back and past them.
    """

    alone: tuple[int, ...]
    long: range

    def __contains__(self, batch: int) -> bool:
        return batch in self.alone or batch in self.long


def make_poison(rng: np.random.Generator, steps: int) -> Poison:
    begin = int(rng.integers(steps // 3, steps // 2))
    alone = rng.choice(steps, size=max(steps // 25, 1), replace=False)
    # So long that a look at every LOG_EVERY sees MAX_SKIPPED in a row.
    return Poison(tuple(sorted(map(int, alone))), range(begin, begin + LOG_EVERY + MAX_SKIPPED))


class Poisoned:
    """A loader whose batches of `poison` are not finite; it calls `announce` before each."""

    def __init__(self, loader: Loader, poison: Poison, announce: Callable[[], None]) -> None:
        self._loader, self._poison, self._announce = loader, poison, announce

    def __next__(self):
        self._announce()
        number, batch = self._loader.next_index, next(self._loader)
        if number not in self._poison:
            return batch
        return batch.replace(target_weights=np.full_like(batch.target_weights, np.nan))

    def __getattr__(self, name: str):
        return getattr(self._loader, name)


def soak_config(steps: int) -> ConfigDict:
    """All stages at sizes where a step takes milliseconds, on pictures of four patches."""
    config = base.get_config()
    config.stages = (*BEFORE.split(","), STAGE)
    config.data.image_size = 32
    config.data.scenes.sizes = ((32, 32),)
    config.data.vocab_size = 400
    config.data.source.size = EXAMPLES
    tower = {"width": 32, "depth": 1, "heads": 2, "mlp_dim": 32}
    config.encoder.vision.update(tower)
    config.encoder.text.update(tower)
    config.codec.latent_dim = 8
    config.codec.statistics_batches = 2
    config.codec.decoder.update(tower)
    config.unified.transformer.update({**tower, "kv_heads": 1, "head_dim": 16})
    for stage in config.stages:
        config[stage].update({"steps": 4, "batch_size": 4, "warmup_steps": 2})
    config[STAGE].update(
        {
            "steps": steps,
            "ema_decay": 0.9,
            "sequence_length": 96,
            "window_rows": 4,
            "overlong": "skip",
            "log_every": LOG_EVERY,
            "save_every": SAVE_EVERY,
            "max_skipped": MAX_SKIPPED,
            "max_rollbacks": 3,
        }
    )
    config[STAGE].mixture.update({"text_to_image": 0.5, "image_to_text": 0.3, "visual_qa": 0.2})
    return config


def write_config(folder: Path, steps: int) -> Path:
    """A configuration file that trains on the records of `write_records`."""
    path = folder / "config.py"
    path.write_text(
        "from experiments.soak.data import soak_config\n\n\n"
        "def get_config():\n"
        f"    config = soak_config({steps})\n"
        f"    config.data.source.update(kind='array_record', path={str(_records(folder))!r})\n"
        "    return config\n",
        encoding="utf-8",
    )
    return path


def write_records(folder: Path) -> None:
    """Scenes as ArrayRecord; those of `BROKEN` are cut in half."""
    source = open_examples(soak_config(1))
    _records(folder).mkdir(exist_ok=True)
    path = _records(folder) / f"examples{SUFFIX}"
    writer = array_record_module.ArrayRecordWriter(str(path), WRITER_OPTIONS)
    for index in range(EXAMPLES):
        record = encode_example(source[index])
        writer.write(record[: len(record) // 2] if index in BROKEN else record)
    writer.close()


def _records(folder: Path) -> Path:
    return folder / "records"
