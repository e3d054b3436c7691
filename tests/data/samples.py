"""A small tokenizer and a cheap source of examples, shared by the pipeline's tests."""

from __future__ import annotations

import functools

import numpy as np

from data_pipelines.examples import Edit, Example, Question
from data_pipelines.faults import RecordError
from data_pipelines.images import ImagePolicy
from data_pipelines.sequences.format import SequenceConfig
from data_pipelines.sequences.tokenizer import Tokenizer, train_tokenizer

CAPTIONS = ("a red dot", "a red dot on the left of a large blue square")
WORDS = [*CAPTIONS, "how many dots are there? one", "paint it green. think of a dot first"]

# Eight-pixel pictures in patches of four: four tokens an image.
SMALL = SequenceConfig(patch=4, images=ImagePolicy("fixed", size=8), cfg_dropout=0.0)


@functools.cache
def tokenizer() -> Tokenizer:
    return train_tokenizer(WORDS * 4, 300)


def picture(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def example(index: int = 0, **changes: object) -> Example:
    fields = {
        "key": f"dots/{index}",
        "image": picture(index),
        "captions": (f"a red dot {index}", *CAPTIONS[1:]),
        "questions": (Question("how many dots are there?", "one", "count"),),
        "edits": (Edit("paint it green", picture(index + 10_000), "recolour"),),
        "thought": "a dot first",
    }
    return Example(**{**fields, **changes})


class Dots:
    """`size` examples, all different. `bad` maps an index to the fields that spoil it."""

    def __init__(self, size: int = 50, bad: dict[int, dict[str, object]] | None = None) -> None:
        self.size, self.bad, self.reads = size, bad or {}, 0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        self.reads += 1
        return example(index, **self.bad.get(index, {}))


class Holes(Dots):
    """As `Dots`, but the records of `lost` cannot be read."""

    def __init__(self, size: int, lost: set[int]) -> None:
        super().__init__(size)
        self.lost = lost

    def __getitem__(self, index: int) -> Example:
        if index in self.lost:
            raise RecordError(f"dots/{index}: unreadable")
        return super().__getitem__(index)
