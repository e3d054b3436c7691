"""Which samples are taken, in what order a model is asked for them, and what is kept of them."""

from __future__ import annotations

import dataclasses
from functools import partial
from types import SimpleNamespace

import chex
import numpy as np
import pytest

from data_pipelines.examples import Edit
from data_pipelines.faults import SourceError
from data_pipelines.sources.traits import traits_of
from tests.evaluation.helpers import SIDE, PerfectModel, examples, prompts, square
from unicom_jax.evaluation.data import complete, edits_of, half_of, questions_of, sample_of
from unicom_jax.evaluation.editing import evaluate_editing
from unicom_jax.evaluation.generation import evaluate_generation, evaluate_retrieval
from unicom_jax.evaluation.reconstruction import evaluate_reconstruction
from unicom_jax.evaluation.suite import (
    EvaluationConfig,
    balanced,
    first_of_each,
    in_batches,
    in_batches_of_one_shape,
)
from unicom_jax.evaluation.understanding import evaluate_answers, evaluate_captions

CONFIG = EvaluationConfig(image_size=32, batch_size=4)
EXAMPLES = examples(12)


def test_questions_are_limited_by_kind():
    chosen = questions_of(examples(6), 2)
    assert [question.kind for _, question in chosen] == ["colour"] * 2 + ["count"] * 2
    assert [example.key for example, _ in chosen] == ["squares/0", "squares/1"] * 2
    assert len(questions_of(examples(6), 0)) == 0


def test_edits_are_taken_in_turn_from_every_kind():
    odd = Edit("make it blue", square("blue"), "odd")
    data = [dataclasses.replace(e, edits=(*e.edits, odd)) for e in examples(3)]
    assert [edit.kind for _, edit in edits_of(data, 3)] == ["recolour", "odd", "recolour"]


class SomeLack(list):
    """Examples of which some have no picture or no caption."""

    may_lack = True

    def traits(self):
        return np.array([traits_of(example) for example in self], np.uint8)


def test_only_records_with_a_picture_and_a_caption_are_scored():
    whole = examples(4)
    some = SomeLack([dataclasses.replace(whole[0], captions=()), *whole[1:]])
    some[2] = dataclasses.replace(whole[2], image=None)
    assert [example.key for example in complete(some)] == ["squares/1", "squares/3"]
    assert complete(whole) is whole
    with pytest.raises(SourceError, match="has both a picture and a caption"):
        complete(SomeLack([some[0], some[2]]))


def test_development_and_test_share_no_record_and_keep_theirs_when_records_are_added():
    halves = {split: half_of(range(101), split) for split in ("development", "test")}
    development, test = (set(map(int, half.indices)) for half in halves.values())
    assert not development & test
    assert len(development | test) == 101 and 35 < len(test) < 65
    assert test <= set(map(int, half_of(range(200), "test").indices))


def test_the_sample_is_not_the_first_records_and_grows_by_appending():
    few, many = sample_of(range(1000), 10), sample_of(range(1000), 50)
    assert [few[i] for i in range(10)] == [many[i] for i in range(10)]
    assert max(few[i] for i in range(10)) > 500
    assert len({many[i] for i in range(50)}) == 50
    assert len(sample_of(range(3), 50)) == 3


def test_balanced_takes_kinds_in_turn():
    assert balanced(["a1", "a2", "a3", "b1"], lambda x: x[0], 3) == ["a1", "b1", "a2"]


def test_first_of_each_takes_kind_after_kind():
    items = ["a1", "b1", "a2", "a3", "b2"]
    assert first_of_each(items, lambda x: x[0], 2) == ["a1", "a2", "b1", "b2"]


def test_batches_report_their_progress_and_number_their_items():
    done = []
    batches = list(in_batches(range(5), 2, done.append, first=10))
    assert batches == [(10, [0, 1]), (12, [2, 3]), (14, [4])]
    assert done == [2, 2, 1]


def test_batches_of_one_shape_number_every_item_once():
    shapes = [(2, 1), (1, 1), (2, 1), (1, 1), (2, 1)]
    batches = list(in_batches_of_one_shape("abcde", shapes, 2))
    assert batches == [
        (0, (1, 1), [(1, "b"), (3, "d")]),
        (2, (2, 1), [(0, "a"), (2, "c")]),
        (4, (2, 1), [(4, "e")]),
    ]


class Noisy(PerfectModel):
    """Draws, edits and copies are noise of (seed, place), as Generator's is."""

    def _noise(self, seed, first, count):
        rngs = [np.random.default_rng([seed, first + place]) for place in range(count)]
        return [rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8) for rng in rngs]

    def reconstruct(self, images, *, seed, first):
        self.calls.append(("reconstruct", len(images)))
        return self._noise(seed, first, len(images))

    def draw(self, prompts, *, seed, first, **options):
        return [SimpleNamespace(image=image) for image in self._noise(seed, first, len(prompts))]

    def edit(self, images, instructions, *, seed, first, **options):
        return self._noise(seed, first, len(images))


@pytest.mark.parametrize(
    ("suite", "items", "field"),
    [
        (evaluate_reconstruction, examples(70), "reconstruction"),
        (evaluate_generation, prompts() * 12, "image"),
        (partial(evaluate_retrieval, encoder=Noisy()), examples(40), "image"),
        (evaluate_editing, [(e, e.edits[0]) for e in examples(70)], "after"),
    ],
)
def test_a_sample_gets_the_same_noise_at_every_batch_size(suite, items, field):
    config = dataclasses.replace(CONFIG, pictures=len(items), shown=len(items))
    small, large = (
        [
            getattr(record, field)
            for record in suite(
                Noisy(), items, dataclasses.replace(config, batch_size=size)
            ).records
        ]
        for size in (32, 64)
    )
    chex.assert_trees_all_equal(small, large)
    assert len({image.tobytes() for image in small}) == len(items)  # and each its own


def test_a_model_is_given_one_batch_at_a_time():
    model = Noisy()
    evaluate_reconstruction(model, examples(10), dataclasses.replace(CONFIG, batch_size=4))
    assert model.calls == [("reconstruct", 4), ("reconstruct", 4), ("reconstruct", 2)]


@pytest.mark.parametrize(
    ("suite", "items"),
    [
        (evaluate_reconstruction, EXAMPLES),
        (evaluate_captions, EXAMPLES),
        (partial(evaluate_retrieval, encoder=PerfectModel()), EXAMPLES),
        (evaluate_answers, [(e, q) for e in EXAMPLES for q in e.questions[:1]]),
        (evaluate_editing, [(e, e.edits[0]) for e in EXAMPLES]),
    ],
)
def test_every_sample_keeps_its_outcome_and_few_keep_their_pictures(suite, items):
    records = suite(PerfectModel(), items, dataclasses.replace(CONFIG, shown=2)).records
    assert [record.key for record in records] == [example.key for example in EXAMPLES]
    with_pictures = [
        any(isinstance(value, np.ndarray) for value in vars(record).values()) for record in records
    ]
    assert with_pictures == [True] * 2 + [False] * 10
