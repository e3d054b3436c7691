"""Each suite on a model that does all right and on one that is blind."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines.examples import Edit, Question
from data_pipelines.scenes.agreement import Agreement
from tests.evaluation.helpers import (
    COLOURS,
    BlindModel,
    PerfectModel,
    colour_of,
    examples,
    prompts,
    square,
)
from unicom_jax.evaluation.editing import evaluate_editing, judge_pixels
from unicom_jax.evaluation.generation import evaluate_generation, evaluate_retrieval
from unicom_jax.evaluation.reconstruction import PSNR_CEILING, evaluate_reconstruction
from unicom_jax.evaluation.suite import EvaluationConfig
from unicom_jax.evaluation.understanding import evaluate_answers, evaluate_captions

CONFIG = EvaluationConfig(image_size=32, batch_size=4)
EXAMPLES = examples(12)


def asked(data):
    return [(example, question) for example in data for question in example.questions]


def edited(data):
    return [(example, edit) for example in data for edit in example.edits]


def values(result):
    return {score.name: score.interval.value for score in result.scores}


def chances(result):
    return {score.name: score.chance for score in result.scores}


def test_a_perfect_copy_scores_the_ceiling_and_distance_zero():
    scores = values(
        evaluate_reconstruction(PerfectModel(), EXAMPLES, CONFIG, encoder=PerfectModel())
    )
    assert scores["reconstruction/psnr"] == PSNR_CEILING
    assert scores["reconstruction/ssim"] == pytest.approx(1.0)
    assert scores["reconstruction/kid"] == pytest.approx(0.0, abs=1e-6)


def test_a_grey_copy_scores_low_and_far():
    scores = values(evaluate_reconstruction(BlindModel(), EXAMPLES, CONFIG, encoder=BlindModel()))
    assert scores["reconstruction/psnr"] < 10
    assert scores["reconstruction/kid"] > 1000


def test_chance_of_reconstruction_is_another_picture():
    pair = [square("red"), square("blue")]
    chosen = [
        dataclasses.replace(example, image=image)
        for example, image in zip(EXAMPLES, [*pair, pair[0]], strict=False)
    ]
    result = evaluate_reconstruction(PerfectModel(), chosen, CONFIG, encoder=PerfectModel())
    # Pairs (red, blue), (blue, red) and (red, red), whose PSNR is the ceiling.
    assert 40 < chances(result)["reconstruction/psnr"] < 50
    assert chances(result)["reconstruction/kid"] is None


def test_a_judge_says_how_many_facts_a_reconstruction_keeps():
    def judge(first, second):
        same = int((first == second).all())
        return Agreement(kept=3 * same, lost=3 - 3 * same, invented=0)

    for model, share in ((PerfectModel(), 1.0), (BlindModel(), 0.0)):
        result = evaluate_reconstruction(model, EXAMPLES, CONFIG, encoder=None, judge=judge)
        assert values(result)["reconstruction/agreement"] == share
        assert {record.agreement for record in result.records} == {share}


def test_pictures_are_scored_in_their_own_shapes():
    class Shaped(PerfectModel):
        def draw(self, prompts, *, size, **options):
            self.calls.append(size)
            return [SimpleNamespace(image=np.zeros((*size, 3), np.uint8)) for _ in prompts]

        def features(self, images):
            return np.stack([image.mean(axis=(0, 1)) for image in images])

    wide = [
        dataclasses.replace(e, image=e.image if i % 2 else e.image[:16])
        for i, e in enumerate(examples(6))
    ]
    model = Shaped()
    result = evaluate_retrieval(model, wide, CONFIG, encoder=model)
    assert model.calls == [(16, 32), (32, 32)]
    assert {record.key: record.image.shape for record in result.records} == {
        example.key: example.image.shape for example in wide
    }


def test_the_kernel_distance_is_measured_by_the_given_encoder():
    class Measured(PerfectModel):
        def features(self, images):
            return np.zeros((len(images), 4))

    own = values(evaluate_reconstruction(BlindModel(), EXAMPLES, CONFIG, encoder=BlindModel()))
    other = values(evaluate_reconstruction(BlindModel(), EXAMPLES, CONFIG, encoder=Measured()))
    assert own["reconstruction/kid"] > other["reconstruction/kid"] == 0.0


def test_without_an_encoder_only_the_kernel_distance_is_left_out():
    scores = values(evaluate_reconstruction(BlindModel(), EXAMPLES, CONFIG, encoder=None))
    assert set(scores) == {"reconstruction/psnr", "reconstruction/ssim"}


def test_right_answers_score_one_by_kind_and_over_all():
    scores = values(evaluate_answers(PerfectModel(), asked(examples()), CONFIG))
    assert scores == {
        "understanding/qa": 1.0,
        "understanding/qa/colour": 1.0,
        "understanding/qa/count": 1.0,
    }


def test_chance_of_an_answer_is_the_commonest_one():
    result = evaluate_answers(BlindModel(), asked(examples(6)), CONFIG)
    assert chances(result)["understanding/qa/colour"] == pytest.approx(1 / 3)
    assert chances(result)["understanding/qa/count"] == 1.0
    assert chances(result)["understanding/qa"] == pytest.approx(2 / 3)
    assert values(result)["understanding/qa/colour"] == pytest.approx(1 / 3)


def test_questions_about_one_picture_widen_the_interval():
    """Two questions with one answer say no more than one of them."""
    data = [
        dataclasses.replace(e, questions=(e.questions[0],) * 4, key=f"squares/{i}")
        for i, e in enumerate(examples(12))
    ]
    (once, _), (four, _) = (
        evaluate_answers(
            BlindModel(), [(e, q) for e in data for q in e.questions[:n]], CONFIG
        ).scores
        for n in (1, 4)
    )
    assert four.interval.value == once.interval.value
    assert four.interval.low == pytest.approx(once.interval.low, abs=0.02)
    assert four.count == 4 * once.count


def test_answers_are_compared_by_the_rule_that_the_configuration_names():
    class Rough(PerfectModel):
        def answer(self, images, questions, **options):
            return ["104"] * len(images)

    question = Question("how much?", "100", "number")
    chosen = [(example, question) for example in examples(4)]
    for rule, right in {"exact": 0.0, "relaxed": 1.0}.items():
        config = dataclasses.replace(CONFIG, answer_rule=rule)
        assert values(evaluate_answers(Rough(), chosen, config))["understanding/qa"] == right
    with pytest.raises(ValueError, match="answer_rule 'vqs' is unknown; choose one of exact, vqa"):
        dataclasses.replace(CONFIG, answer_rule="vqs")


def test_a_caption_may_match_any_true_one():
    scores = values(evaluate_captions(PerfectModel(), examples(), CONFIG))
    assert scores == {"understanding/caption": 1.0, "understanding/caption_f1": 1.0}


def test_a_caption_in_other_words_needs_a_judge():
    class Poet(PerfectModel):
        def caption(self, images, *, max_tokens, temperature, seed, first):
            return [f"lo, {colour_of(image)}" for image in images]

    def judge(text, example):
        return text.split()[-1] == colour_of(example.image)

    plain = evaluate_captions(Poet(), examples(), CONFIG)
    judged = evaluate_captions(Poet(), examples(), CONFIG, judge=judge)
    assert values(plain)["understanding/caption"] == 0.0
    assert values(judged)["understanding/caption"] == 1.0


def test_chance_of_a_caption_is_the_commonest_one_said_always():
    result = evaluate_captions(BlindModel(), examples(6), CONFIG)
    assert chances(result)["understanding/caption"] == pytest.approx(1 / 3)
    assert values(result) == {"understanding/caption": 0.0, "understanding/caption_f1": 0.0}


def test_generation_scores_each_category_and_their_mean():
    result = evaluate_generation(PerfectModel(), prompts(), CONFIG)
    assert values(result) == {
        "generation/single": 1.0,
        "generation/colours": 1.0,
        "generation/overall": 1.0,
    }
    assert chances(result)["generation/single"] == 0.0


def test_a_single_prompt_has_no_chance():
    assert set(chances(evaluate_generation(PerfectModel(), prompts()[:1], CONFIG)).values()) == {
        None
    }


def test_a_refused_drawing_keeps_its_reason():
    result = evaluate_generation(BlindModel(), prompts(), CONFIG)
    wrong = [record for record in result.records if not record.correct]
    assert {record.reason for record in wrong} <= {f"no {colour} square" for colour in COLOURS}
    assert len(wrong) >= 4


def test_retrieval_finds_the_pictures_of_distinct_captions():
    distinct = [
        dataclasses.replace(example, image=square(colour))
        for example, colour in zip(examples(3), COLOURS, strict=True)
    ]
    found = evaluate_retrieval(PerfectModel(), distinct, CONFIG, encoder=PerfectModel())
    assert values(found)["generation/retrieval"] == 1.0
    assert values(found)["generation/kid"] == pytest.approx(0.0)
    assert chances(found)["generation/retrieval"] == pytest.approx(1 / 3)
    assert found.records[0].correct is None
    assert found.records[0].reason == "retrieved at rank 1 of 3"


def test_retrieval_does_not_find_grey_drawings():
    found = values(evaluate_retrieval(BlindModel(), examples(6), CONFIG, encoder=BlindModel()))
    assert found["generation/retrieval"] < 1.0
    assert found["generation/kid"] > 0.0


def test_a_true_edit_reaches_its_target_and_keeps_the_rest():
    assert set(values(evaluate_editing(PerfectModel(), edited(examples()), CONFIG)).values()) == {
        1.0
    }


def test_an_editor_that_does_nothing_is_the_chance_of_editing():
    result = evaluate_editing(PerfectModel(), edited(examples()), CONFIG)
    assert chances(result) == {
        "editing/success": 0.0,
        "editing/reached": 0.0,
        "editing/unchanged": 1.0,
        "editing/success/recolour": 0.0,
    }


def test_an_edit_that_paints_over_everything_is_no_success():
    scores = values(evaluate_editing(BlindModel(), edited(examples()), CONFIG))
    assert scores["editing/success"] == scores["editing/unchanged"] == 0.0


def test_an_edit_of_another_size_fails_with_the_sizes():
    class Cropper(PerfectModel):
        def edit(self, images, instructions, **options):
            return [image[:16] for image in images]

    result = evaluate_editing(Cropper(), edited(examples(3)), CONFIG)
    assert {record.reason for record in result.records} == {"size 32x16, not 32x32"}


def test_pixels_tell_reached_from_unchanged():
    example = examples(1)[0]
    before, edit = square("red"), Edit("make it blue", square("blue"), "recolour")
    spoiled = square("blue")
    spoiled[24:] = 0
    assert judge_pixels(example, edit, before, square("blue")).success
    assert not judge_pixels(example, edit, before, before).reached
    verdict = judge_pixels(example, edit, before, spoiled)
    assert verdict.reached
    assert not verdict.unchanged
    assert "rest moved" in verdict.reason


def test_configuration_is_read_from_a_run():
    config = EvaluationConfig.of(
        {
            "evaluation": {"prompts": 3, "batch_size": 8},
            "sample": {"steps": 5, "guidance": 2.0, "sampler": "heun", "max_tokens": 9},
            "data": {"image_size": 48},
            "seed": 4,
        }
    )
    assert (config.prompts, config.steps, config.sampler) == (3, 5, "heun")
    assert (config.image_size, config.seed) == (48, 4)
    assert config.drawing == {
        "steps": 5,
        "guidance": 2.0,
        "guidance_interval": (0.0, 1.0),
        "sampler": "heun",
        "grid": "even",
    }
    assert config.editing == {**config.drawing, "edit_start": 0.0}


def test_an_unknown_key_is_refused_with_the_nearest():
    whole = {"evaluation": {"promts": 3}, "sample": {}, "data": {"image_size": 48}, "seed": 0}
    with pytest.raises(ValueError, match="no key 'promts'; did you mean 'prompts'"):
        EvaluationConfig.of(whole)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"edits": -1}, {"pictures": 2}])
def test_counts_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=rf"evaluation\.{next(iter(wrong))} is "):
        EvaluationConfig(**wrong)


def test_pictures_are_compared_as_the_encoder_saw_them():
    class Halver(PerfectModel):
        def prepared(self, image):
            return np.ascontiguousarray(image[::2, ::2])

    scores = values(evaluate_reconstruction(Halver(), EXAMPLES, CONFIG, encoder=Halver()))
    assert scores["reconstruction/psnr"] == PSNR_CEILING
