"""The input pipeline alone: the tokens it produces, compared with those that the step consumes."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from data_pipelines.batches import unified_loader
from data_pipelines.build import load_or_train_tokenizer
from experiments import base
from experiments.benchmarks.race import Spread
from experiments.benchmarks.standard import Standard

TARGET = 10.0  # times the tokens that our step takes
MIXTURE = {"text_to_image": 0.4, "image_to_text": 0.2, "visual_qa": 0.2, "edit": 0.2}
EPOCH = 256  # pictures of the source that is read a second time


@dataclasses.dataclass(frozen=True)
class Delivery:
    """Rates of one pipeline. `tokens` counts used slots, not padding."""

    name: str
    examples: Spread  # a second
    tokens: Spread  # a second


def make_config(sizes: Standard, pictures: int):
    """The unified stage's pipeline on Scenes, with the standard step's rows and image tokens."""
    config = base.get_config()
    config.data.update({"patch": config.data.image_size // sizes.grid, "vocab_size": 512})
    config.data.source.size = pictures
    config.pretrain.update(
        {
            "batch_size": sizes.rows,
            "window_rows": sizes.rows,
            "sequence_length": sizes.slots,
            "overlong": "skip",
        }
    )
    config.pretrain.mixture.update(MIXTURE)
    return config


def deliver(name: str, sizes: Standard, pictures: int, warmup: int, samples: int) -> Delivery:
    """Reads `samples` times 16 batches after `warmup` batches, as fast as they come."""
    config = make_config(sizes, pictures)
    loader = unified_loader(config, "pretrain", load_or_train_tokenizer(config, None))
    for _ in range(warmup):
        next(loader)
    examples, tokens = [], []
    for _ in range(samples):
        before, start = loader.counts.copy(), time.perf_counter()
        for _ in range(16):
            next(loader)
        seconds = time.perf_counter() - start
        examples.append((loader.counts["documents"] - before["documents"]) / seconds)
        tokens.append((loader.counts["slots"] - before["slots"]) / seconds)
    loader.close()
    return Delivery(name, Spread.of(np.array(examples)), Spread.of(np.array(tokens)))


def deliveries(sizes: Standard, samples: int) -> list[Delivery]:
    """Once with every picture drawn anew, once with the pictures of an earlier epoch in memory."""
    epoch_batches = 8 * EPOCH // sizes.rows
    return [
        deliver("pictures drawn anew", sizes, 20_000, 8, samples),
        deliver("pictures in memory", sizes, EPOCH, epoch_batches, samples),
    ]
