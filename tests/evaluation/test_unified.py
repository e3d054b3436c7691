"""The suite that describes a picture, draws the description and compares."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_pipelines.scenes.agreement import Agreement
from data_pipelines.scenes.scene import SceneConfig
from tests.evaluation.helpers import COLOURS, PerfectModel, colour_of, examples
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


def facts_in(text: str, example) -> Agreement:
    """The colour alone; a text without one keeps and invents nothing."""
    claimed = [word for word in text.split() if word in COLOURS]
    same = colour_of(example.image) in claimed
    return Agreement(kept=int(same), lost=int(not same), invented=len(claimed) - same)


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


class Blind(Describing):
    def draw(self, prompts, **how):
        return super().draw(["a red square"] * len(prompts), **how)


def test_facts_of_a_description_are_counted_whatever_is_drawn_from_it():
    scores = values(run(Blind(), judge=same_colour, judge_words=facts_in))
    assert scores["unified/agreement"] == pytest.approx(1 / 3)
    for kind, kept in (("", 1.0), ("/true caption", 1.0), ("/shuffled", 0.0)):
        assert scores[f"unified/caption_kept{kind}"] == kept
        assert scores[f"unified/caption_invented{kind}"] == 1.0 - kept


def test_the_outcome_of_every_description_is_recorded():
    class Fixed(Describing):
        wrong = "a red square"

    result = run(Fixed(), judge_words=facts_in)
    red = [colour_of(one.image) == "red" for one in EXAMPLES]
    assert [row.caption_kept for row in result.records] == red
    assert [row.caption_invented for row in result.records] == [not one for one in red]
    assert chances(result)["unified/caption_kept"] == pytest.approx(1 / 3)
    vague = Blind()
    vague.wrong = "a square"
    scores = values(run(vague, judge_words=facts_in))
    assert scores["unified/caption_kept"] == scores["unified/caption_invented"] == 0.0


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


@pytest.mark.parametrize("long", [False, True])
def test_the_judge_of_scenes_counts_the_facts_of_a_description(long):
    scenes = SceneConfig(long_captions=long)
    data = scenes_data(dataclasses.replace(CONFIG, image_size=64, pictures=8), scenes)
    for index in range(8):
        example, other = data.examples[index], data.examples[(index + 1) % 8]
        told = data.judge_facts(example.captions[-1], example)
        assert told.kept > 0 and told.invented == 0
        assert told.completeness == 1.0 or not long
        assert data.judge_facts(other.captions[-1], example).wrong > 0
        assert data.judge_facts("nothing of the kind", example).kept == 0


def test_suites_are_chosen_by_name():
    assert chosen_suites(None) is None
    assert chosen_suites("unified,captions") == ("unified", "captions")
    assert chosen_suites("all") == tuple(SUITES)
    with pytest.raises(ConfigError, match="--suite=unify: 'unify' is unknown; choose from recon"):
        chosen_suites("unify")


def test_parts_of_a_score_are_shown_as_the_score_is():
    assert style_of("unified/invented/shuffled") is style_of("unified/invented")
    assert not style_of("unified/invented").higher_is_better
    assert not style_of("unified/caption_invented/true caption").higher_is_better
    assert style_of("understanding/qa/colour").unit == "%"
