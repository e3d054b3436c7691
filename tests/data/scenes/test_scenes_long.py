"""Long captions are complete and true, and their parser finds what is missing or wrong."""

from __future__ import annotations

import pytest

from data_pipelines.scenes.agreement import Account, Agreement, account_of, agreement
from data_pipelines.scenes.facts import Phrase
from data_pipelines.scenes.judge import read_scene
from data_pipelines.scenes.long_captions import long_caption, read_long, score_long, truth_of
from data_pipelines.scenes.render import render
from data_pipelines.scenes.scene import Scene, SceneConfig, SceneObject
from data_pipelines.scenes.source import ScenesSource

SOURCE = ScenesSource(seed=12)
RED_CIRCLE = SceneObject("circle", "red", "large", 0.24, 0.5)
BLUE_STAR = SceneObject("star", "blue", "small", 0.76, 0.24)
PAIR = Scene((RED_CIRCLE, BLUE_STAR), "gray", 64, 64)
TEXT = long_caption(PAIR)
ALL = 9  # facts of two objects and the ground


def test_the_form():
    assert TEXT == (
        "this is a flat picture with exactly two objects in it, drawn on a plain gray background. "
        "the first object is a star, and its colour is blue all over. "
        "in size it is small, measured against the whole picture, and its place is at the top "
        "right of the picture. "
        "the second object is a circle, and its colour is red all over. "
        "in size it is large, measured against the whole picture, and its place is on the left of "
        "the picture. "
        "nothing else is to be seen in this picture, and the ground around is gray everywhere."
    )


def test_every_long_caption_has_60_words_and_all_facts():
    for index in range(300):
        scene = SOURCE.scene(index)
        text, truth = long_caption(scene), truth_of(scene)
        assert len(text.split()) >= 60
        found = score_long(text, truth)
        assert found == Agreement(4 * len(scene.objects) + 1, 0, 0) and found.score == 1.0
        claims = read_long(text)
        assert claims.count == len(scene.objects) and claims.faults == 0


def test_a_source_adds_them_where_it_is_asked_to():
    config = SceneConfig(long_captions=True)
    plain, more = SOURCE[4].captions, ScenesSource(config, seed=12)[4].captions
    assert more == (*plain, long_caption(SOURCE.scene(4)))


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("red all over", "green all over", Agreement(ALL - 1, 1, 1)),  # wrong
        ("a star,", "a heart,", Agreement(ALL - 1, 1, 1)),
        ("on the left of", "on the right of", Agreement(ALL - 1, 1, 1)),
        ("it is small", "it is large", Agreement(ALL - 1, 1, 1)),
        ("exactly two objects", "exactly three objects", Agreement(ALL, 0, 1)),
        # the ground is said twice: a contradiction is a fault, the first one counts
        ("plain gray", "plain white", Agreement(ALL - 1, 1, 2)),
        ("is gray everywhere", "is white everywhere", Agreement(ALL, 0, 1)),
        # not of the language: the sentence is a fault and what it should say is lost
        ("red all over", "reddish all over", Agreement(ALL - 4, 4, 2)),
        ("the second object", "the fourth object", Agreement(ALL, 0, 1)),
    ],
)
def test_a_change_of_the_text_costs_what_it_changes(before, after, expected):
    assert before in TEXT
    assert score_long(TEXT.replace(before, after), truth_of(PAIR)) == expected


def test_a_text_that_stops_early_loses_what_it_did_not_say():
    cut = TEXT[: TEXT.index("the second object")]
    assert score_long(cut, truth_of(PAIR)) == Agreement(5, 4, 0)
    assert score_long("", truth_of(PAIR)) == Agreement(0, ALL, 0)
    nonsense = score_long("nothing. of the kind.", truth_of(PAIR))
    assert nonsense == Agreement(0, ALL, 2) and nonsense.score == nonsense.completeness == 0.0


def test_an_object_that_is_named_twice_is_invented_once():
    start, stop = TEXT.index("the second object"), TEXT.index("nothing else")
    third = TEXT[start:stop].replace("second", "third")
    found = score_long(TEXT[:stop] + third + TEXT[stop:], truth_of(PAIR))
    assert found == Agreement(ALL, 0, 4)


def test_a_letter_is_named_by_its_letter():
    scene = Scene((SceneObject("letter", "red", "large", 0.5, 0.5, "A"),), "white", 64, 64)
    text = long_caption(scene)
    assert "is a letter A, and" in text
    assert score_long(text.replace("letter A", "letter C"), truth_of(scene)).kept == 4
    assert score_long(text.replace("letter A", "letter"), truth_of(scene)) == Agreement(4, 1, 2)


def test_objects_are_matched_so_that_most_facts_are_kept():
    truth = Account((Phrase(colour="red", shape="star"), Phrase(colour="blue", shape="ring")), "")
    given = Account(
        (Phrase(colour="blue", shape="ring"), Phrase(colour="red", shape="ring")), "sky"
    )
    assert agreement(truth, given) == Agreement(kept=3, lost=1, invented=2)
    assert agreement(truth, Account(())) == Agreement(0, 4, 0)
    assert agreement(Account(()), truth) == Agreement(0, 0, 4)


def test_the_judges_reading_of_a_picture_agrees_with_its_truth():
    scene = SOURCE.scene(3)
    reading = read_scene(render(scene))
    assert agreement(truth_of(scene), account_of(reading.objects, reading.background)).score == 1.0
