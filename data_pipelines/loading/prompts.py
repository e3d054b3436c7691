"""Batches of pictures that a policy describes or redraws: each with one of its captions and, if
requested, one question about it.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import NamedTuple

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.loading.pictures import Found, PictureBatches
from data_pipelines.sequences.tasks import BrokenExample


class PromptBatch(NamedTuple):
    """B pictures of at most N patches.

    Attributes:
      patches: (B, N, patch * patch * 3) uint8, raster order, zeros after the last patch.
      grids: (B, 2) int32 (rows, columns) of patches.
      captions: (B, T) int32, the caption that `PictureConfig.captions` chooses, padded with -1; all
        -1 if it chooses none.
      questions, answers: (B, q) and (B, a) int32, padded with -1; q = a = 0 if none are requested.
        A question begins with a space, so that it can follow a caption.
      number: (B,) int32, the step of the batch.
    """

    patches: np.ndarray
    grids: np.ndarray
    captions: np.ndarray
    questions: np.ndarray
    answers: np.ndarray
    number: np.ndarray


@dataclasses.dataclass(frozen=True)
class PromptBatches(PictureBatches):
    """Maps a step to this process's part of a global batch, as `PictureBatches` does; captions
    longer than `pictures.text_length` are cut and counted.

    Attributes:
      question_length, answer_length: the most tokens of a question and its answer; 0: none are
        asked. An example whose questions are all longer is skipped as broken.
    """

    question_length: int = 0
    answer_length: int = 0

    def __call__(self, step: int) -> tuple[PromptBatch, Counter]:
        found, counts = self.found(step)
        pictures, rows = self.batch(found, counts), len(found)
        inside = np.arange(pictures.tokens.shape[1]) < pictures.lengths[:, None]
        questions = np.full((rows, self.question_length), -1, np.int32)
        answers = np.full((rows, self.answer_length), -1, np.int32)
        for row, (_, _, asked) in enumerate(found):
            for into, ids in zip((questions, answers), asked, strict=True):
                into[row, : len(ids)] = ids
        batch = PromptBatch(
            patches=pictures.patches,
            grids=pictures.grids,
            captions=np.where(inside, pictures.tokens, -1).astype(np.int32),
            questions=questions,
            answers=answers,
            number=np.full(rows, step, np.int32),
        )
        return batch, counts

    def _use(self, example: Example, index: int) -> Found:
        found = super()._use(example, index)
        return found._replace(asked=self._asked(example, index)) if self.question_length else found

    def _asked(self, example: Example, index: int) -> tuple[list[int], list[int]]:
        """A question and its answer, drawn from those that are short enough."""
        encode = self.tokenizer.encode
        pairs = [(encode(f" {q.question}"), encode(q.answer)) for q in example.questions]
        fitting = [
            pair
            for pair in pairs
            if len(pair[0]) <= self.question_length and 0 < len(pair[1]) <= self.answer_length
        ]
        if not pairs:
            raise BrokenExample(f"example {example.key!r} has no question; choose other data")
        if not fitting:
            raise BrokenExample(
                f"example {example.key!r} has no question of at most {self.question_length} "
                f"tokens with an answer of at most {self.answer_length}; allow longer ones"
            )
        return fitting[int(np.random.default_rng([self.seed, index, 1]).integers(len(fitting)))]
