"""The suite that describes a picture, draws the description and compares."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_pipelines.scenes.agreement import Agreement
from tests.evaluation.helpers import PerfectModel, colour_of, examples
from tests.evaluation.test_suites import CONFIG, chances, values
from unicom_jax.config import ConfigError
from unicom_jax.evaluation.command import chosen_suites
from unicom_jax.evaluation.data import EvaluationData
from unicom_jax.evaluation.run import SUITES, choose_samples, measured_scores, suites_of
from unicom_jax.evaluation.scenes import scenes_data
from unicom_jax.evaluation.scores import style_of
from unicom_jax.evaluation.unified import evaluate_unified

EXAMPLES = examples(12)


class Describing(PerfectModel):
    """Describes a picture as it should, or by `wrong`."""

    wrong = ""

    def answer(self, images, questions, **how):
        return [self.wrong or f"a {colour_of(image)} square" for image in images]


def same_colour(one, other) -> Agreement:
    same = colour_of(one) == colour_of(other)
    return Agreement(kept=int(same), lost=int(not same), invented=int(not same))


def run(model, **how):
    return evaluate_unified(model, EXAMPLES, CONFIG, encoder=PerfectModel(), **how)


def test_a_model_that_reads_and_draws_well_is_level_with_true_captions():
    scores = values(run(Describing(), judge=same_colour))
    for kind in ("", "/true caption"):
        assert scores[f"unified/agreement{kind}"] == scores[f"unified/kept{kind}"] == 1.0
        assert scores[f"unified/invented{kind}"] == 0.0
    assert scores["unified/cosine"] == scores["unified/cosine/true caption"] > 0.9


def test_chance_is_the_description_of_the_next_picture():
    result = run(Describing(), judge=same_colour)
    scores, chance = values(result), chances(result)
    # The colours take turns, so no neighbour has the same one.
    assert scores["unified/agreement/shuffled"] == chance["unified/agreement"] == 0.0
    assert scores["unified/cosine/shuffled"] == chance["unified/cosine"] < scores["unified/cosine"]
    assert chance["unified/cosine/shuffled"] is None


def test_a_model_that_reads_nothing_is_at_chance_whatever_it_draws():
    class Fixed(Describing):
        wrong = "a red square"

    result = run(Fixed(), judge=same_colour)
    assert values(result)["unified/agreement"] == pytest.approx(1 / 3)
    assert chances(result)["unified/agreement"] == pytest.approx(1 / 3)
    assert values(result)["unified/agreement/true caption"] == 1.0


def test_what_nobody_can_measure_is_left_out():
    assert {name.split("/")[1] for name in values(run(Describing()))} == {"cosine"}
    judged = evaluate_unified(Describing(), EXAMPLES, CONFIG, judge=same_colour)
    assert {name.split("/")[1] for name in values(judged)} == {"agreement", "kept", "invented"}
    assert evaluate_unified(Describing(), EXAMPLES, CONFIG).scores == []
    data = EvaluationData(EXAMPLES)
    assert measured_scores(choose_samples(data, CONFIG), data, CONFIG, ("unified",)) == (
        "unified/cosine",
    )


def test_the_same_noise_draws_all_descriptions_of_a_picture():
    places = []

    class Noting(Describing):
        def draw(self, prompts, *, seed, first, **how):
            places.append((seed, first, len(prompts)))
            return super().draw(prompts, seed=seed, first=first, **how)

    run(Noting(), judge=same_colour)
    assert len(places) == 9 and all(len(set(places[i : i + 3])) == 1 for i in (0, 3, 6))


def test_records_show_a_description_with_both_drawings():
    result = run(Describing(), judge=same_colour)
    one = result.records[1]
    assert one.caption == "a green square" and one.true_caption == "one square that is green"
    assert one.agreement == 1.0 and one.cosine == pytest.approx(1.0, abs=0.1)
    assert colour_of(one.drawing) == colour_of(one.true_drawing) == "green"


def test_it_runs_only_where_it_is_asked_for():
    data = dataclasses.replace(EvaluationData(EXAMPLES), judge_drawing=same_colour)
    samples = choose_samples(data, CONFIG)
    usual = suites_of(samples, data, CONFIG, PerfectModel())
    assert "unified" not in usual and "captions" in usual
    suite, count = suites_of(samples, data, CONFIG, PerfectModel(), ("unified",))["unified"]
    assert count == len(EXAMPLES)
    assert values(suite(Describing(), lambda done: None))["unified/kept"] == 1.0


def test_the_judge_of_scenes_finds_a_picture_in_itself_and_not_in_another():
    data = scenes_data(dataclasses.replace(CONFIG, image_size=64, pictures=4))
    one, other = (data.examples[index].image for index in range(2))
    assert data.judge_drawing(one, one).score == 1.0
    blank = np.full_like(one, 255)
    found = data.judge_drawing(one, blank)
    assert found.score < 0.5 and found.lost > 0
    assert data.judge_drawing(one, other).wrong > 0


def test_suites_are_chosen_by_name():
    assert chosen_suites(None) is None
    assert chosen_suites("unified,captions") == ("unified", "captions")
    assert chosen_suites("all") == SUITES
    with pytest.raises(ConfigError, match="--suite=unify: 'unify' is unknown; choose from recon"):
        chosen_suites("unify")


def test_parts_of_a_score_are_shown_as_the_score_is():
    assert style_of("unified/invented/shuffled") is style_of("unified/invented")
    assert not style_of("unified/invented").higher_is_better
    assert style_of("understanding/qa/colour").unit == "%"
