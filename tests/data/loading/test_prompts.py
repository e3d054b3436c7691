"""Batches for a policy: pictures with one of their captions, and a question that fits."""

from __future__ import annotations

import dataclasses
import sys

import numpy as np
import pytest

from data_pipelines.faults import SourceError
from data_pipelines.images import ImagePolicy
from data_pipelines.loading.loader import LoaderConfig
from data_pipelines.loading.pictures import PictureConfig, WeightedSource
from data_pipelines.loading.prompts import PromptBatches
from data_pipelines.scenes.scene import SceneConfig
from data_pipelines.scenes.source import ScenesSource
from tests.data.samples import tokenizer

SOURCE = ScenesSource(SceneConfig(sizes=((32, 32),)), seed=5, size=8)


def batches(rows=4, share=None, captions="last", **options):
    pictures = PictureConfig(16, ImagePolicy("fixed", 32), text_length=200, captions=captions)
    config = LoaderConfig(rows, share)
    return PromptBatches([WeightedSource(SOURCE)], tokenizer(), pictures, config, 3, **options)


def words(ids):
    return tokenizer().decode(ids[ids >= 0])


def test_a_batch_has_pictures_captions_questions_and_its_number():
    batch, counts = batches(question_length=64, answer_length=16)(2)
    examples = {example.captions[-1]: example for example in map(SOURCE.__getitem__, range(8))}
    for caption, question, answer in zip(
        batch.captions, batch.questions, batch.answers, strict=True
    ):
        example = examples[words(caption)]
        asked = {f" {q.question}": q.answer for q in example.questions}
        assert asked[words(question)] == words(answer)
    assert batch.number.tolist() == [2] * 4 and batch.grids.tolist() == [[2, 2]] * 4
    assert counts["documents"] == 4 and counts["broken"] == 0


def test_a_process_makes_its_rows_of_the_same_batch():
    whole, _ = batches(question_length=64, answer_length=16)(1)
    part, _ = batches(share=(1, 3), question_length=64, answer_length=16)(1)
    for every, own in zip(whole, part, strict=True):
        np.testing.assert_array_equal(every[[1, 3]], own)


def test_captions_are_the_most_detailed_ones_any_of_them_or_none():
    stored = {caption: example.key for example in SOURCE for caption in example.captions}
    drawn = [words(ids) for step in range(8) for ids in batches(captions="any")(step)[0].captions]
    assert set(drawn) <= stored.keys() and len({stored[one] for one in drawn}) == 8
    assert len(set(drawn)) > 8  # several of a picture
    assert (batches(captions="none")(0)[0].captions == -1).all()


def test_without_questions_none_are_looked_for():
    batch, _ = batches()(0)
    assert batch.questions.shape == batch.answers.shape == (4, 0)


def test_examples_whose_questions_are_too_long_are_passed_over():
    with pytest.raises(ValueError, match="no question of at most 2 tokens"):
        batches(question_length=2, answer_length=16)(0)


def test_examples_without_questions_are_said_to_have_none(monkeypatch):
    bare = [dataclasses.replace(SOURCE[index], questions=()) for index in range(2)]
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", bare)
    with pytest.raises(SourceError, match="in a row cannot be used; .* has no question; choose"):
        batches(question_length=64, answer_length=16)(0)
