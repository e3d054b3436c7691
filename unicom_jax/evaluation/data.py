"""Evaluation data: a seeded sample of pictures with texts, prompts, and their judges."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.examples import Edit, Example, Question
from data_pipelines.faults import SourceError
from data_pipelines.sources.chosen import having
from data_pipelines.sources.split import SplitSource, held_out
from unicom_jax.evaluation.editing import EditJudge, judge_pixels
from unicom_jax.evaluation.generation import Prompt
from unicom_jax.evaluation.suite import balanced, first_of_each
from unicom_jax.evaluation.understanding import CaptionJudge
from unicom_jax.evaluation.unified import FactsJudge, PictureJudge

DEVELOPMENT, TEST = "development", "test"
SPLITS = (DEVELOPMENT, TEST)
SAMPLE_SEED = 20_231_107  # not the run's: all runs on the same data see the same sample


@dataclasses.dataclass(frozen=True)
class EvaluationData:
    """Held-out examples with their judges.

    Attributes:
      examples: pictures with captions, and questions and edits if the data set has them. They are
        read when used, and not kept.
      prompts: judged prompts. Without any, drawings are scored by retrieval instead.
      judge_edit: decides whether an edit succeeded; by default from the pixels of the true target.
      judge_caption: decides whether a caption in other words is true; None: only stored ones count.
      judge_drawing: decides which facts of a picture another one keeps; None: this is not judged.
      judge_facts: decides which facts of an example's picture a text has; None: this is not judged.
    """

    examples: Sequence[Example]
    prompts: Sequence[Prompt] = ()
    judge_edit: EditJudge = judge_pixels
    judge_caption: CaptionJudge | None = None
    judge_drawing: PictureJudge | None = None
    judge_facts: FactsJudge | None = None


def complete(source: Sequence[Example]) -> Sequence[Example]:
    """The records with both a picture and a caption, which scores need.

    Raises SourceError when there is none.
    """
    found = having(source, ("image", "captions"))
    if not len(found):
        raise SourceError(
            f"no held-out record of {source!r} has both a picture and a caption, so nothing can be "
            "scored: evaluate on other data"
        )
    return found


def half_of(source: Sequence[Example], split: str) -> Sequence[Example]:
    """One half of the held-out records: that for development, or that for testing.

    Each record's half is a hash of its index alone, so added records do not move others.

    Raises SourceError when the half is empty.
    """
    development = held_out(len(source), 0.5)
    indices = np.flatnonzero(development == (split == DEVELOPMENT))
    if not len(indices):
        raise SourceError(
            f"none of the {len(source)} held-out records is in the {split} half; hold out more "
            "(data.source.held_out)"
        )
    return SplitSource(source, indices, split)


def sample_of(source: Sequence[Example], count: int) -> Sequence[Example]:
    """Up to `count` records of a source, drawn without replacement; the same in every run.

    A larger sample begins with the smaller one.
    """
    order = np.random.default_rng(SAMPLE_SEED).permutation(len(source))
    return SplitSource(source, order[:count], "sample")


@dataclasses.dataclass(frozen=True)
class Parts(Sequence[tuple[Example, Any]]):
    """Questions or edits of examples, each with its example, which is read on access.

    Attributes:
      field: "questions" or "edits".
      places: (index of the example, index of its question or edit, kind).
    """

    examples: Sequence[Example]
    field: str
    places: Sequence[tuple[int, int, str]]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Example, Any]:
        of_example, of_part, _ = self.places[index]
        example = self.examples[of_example]
        return example, getattr(example, self.field)[of_part]


def questions_of(examples: Sequence[Example], count: int) -> Sequence[tuple[Example, Question]]:
    """The first `count` questions of every kind, kind after kind, with their examples."""
    places = _places(examples, "questions") if count else []
    return Parts(examples, "questions", first_of_each(places, _kind, count))


def edits_of(examples: Sequence[Example], count: int) -> Sequence[tuple[Example, Edit]]:
    """`count` edits, taken in turn from every kind, with their examples."""
    places = _places(examples, "edits") if count else []
    return Parts(examples, "edits", balanced(places, _kind, count))


def _places(examples: Sequence[Example], field: str) -> list[tuple[int, int, str]]:
    return [
        (index, number, part.kind)
        for index in range(len(examples))
        for number, part in enumerate(getattr(examples[index], field))
    ]


def _kind(place: tuple[int, int, str]) -> str:
    return place[2]
