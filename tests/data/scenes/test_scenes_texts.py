"""Captions, questions and edits say the truth about their scenes."""

from __future__ import annotations

import collections
import dataclasses
import functools
import random

import numpy as np
import pytest

from data_pipelines.scenes.edits import EDIT_KINDS
from data_pipelines.scenes.facts import check
from data_pipelines.scenes.geneval import caption_verdict
from data_pipelines.scenes.judge import read_scene
from data_pipelines.scenes.language import CaptionError, captions, describe, parse, thought
from data_pipelines.scenes.questions import KINDS, questions
from data_pipelines.scenes.render import render
from data_pipelines.scenes.scene import RELATIONS, Scene, SceneConfig, SceneObject
from data_pipelines.scenes.source import ScenesSource

SOURCE = ScenesSource(seed=11, with_edits=True)
RED_CIRCLE = SceneObject("circle", "red", "large", 0.24, 0.5)
BLUE_STAR = SceneObject("star", "blue", "small", 0.76, 0.24)
PAIR = Scene((RED_CIRCLE, BLUE_STAR), "gray", 64, 64)


def test_all_forms_of_caption():
    assert captions(PAIR, random.Random(1)) == (
        "a blue star and a red circle",
        "a star and a circle",
        "a star right of a circle",
        "a red circle left of a blue star",
        "a small blue star at the top right and a large red circle on the left",
        "a small blue star at the top right and a large red circle on the left"
        " on a gray background. the red circle is below the blue star",
    )


def test_alike_objects_are_counted():
    scene = Scene((RED_CIRCLE, dataclasses.replace(RED_CIRCLE, x=0.76)), "white", 64, 64)
    assert captions(scene, random.Random(0))[:2] == ("two red circles", "two circles")


def test_thought_plans_every_object():
    assert thought(PAIR) == (
        "two objects. a small blue star at the top right. a large red circle on the left."
        " gray background."
    )


def test_every_caption_is_true_and_reads_back_into_the_same_facts():
    for index in range(300):
        scene = SOURCE.scene(index)
        for text in captions(scene, random.Random(index)):
            assert check(parse(text), scene.objects, scene.background) == (True, "")
            assert describe(parse(text)) == text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a blue star and a green circle", "0 of 1 green circle"),
        ("a blue star", "2 objects, not 1"),
        ("two blue stars", "1 of 2 blue star"),
        ("a blue star below a red circle", "1 blue star is not below 1 red circle"),
        ("a blue star and a circle", "1 circle has no colour"),
        ("a blue star and a red circle on a white background", "background is gray, not white"),
        ("a bleu star", "not a phrase of the caption grammar: 'a bleu star'"),
        ("", "not a phrase of the caption grammar: ''"),
    ],
)
def test_a_false_or_incomplete_caption_is_refused_with_its_reason(text, reason):
    verdict = caption_verdict(text, PAIR)
    assert (verdict.correct, verdict.reason) == (False, reason)


def test_a_true_caption_in_another_order_is_accepted():
    assert caption_verdict("a red circle and a blue star", PAIR).correct


def test_relation_to_an_unknown_object_is_refused():
    with pytest.raises(CaptionError, match="0 phrases match 'the green ring'"):
        parse("a red circle and a blue star. the green ring is above the blue star")


def rederived(question: str, image: np.ndarray) -> str:
    """The answer from the judge's reading of the picture and a separate reading of the words."""
    items = read_scene(image).objects
    words = question.rstrip("?").split()

    def looks(item, names):
        shape = item.shape
        own = {shape, shape + "s", shape + "es", item.colour, item.letter, "objects"}
        return set(names) - {"a", "an", "the", "is", "there", "are", "object"} <= own

    def only(names):
        (value,) = {v for item in items if looks(item, names) for v in [item]}
        return value

    if words[:2] == ["how", "many"]:
        return ("no", "one", "two", "three", "four")[sum(looks(i, words[2:]) for i in items)]
    if words[:2] in (["what", "colour"], ["what", "shape"]):
        (answer,) = {getattr(item, words[1]) for item in items if looks(item, words[3:])}
        return answer
    if words[0] == "where":
        return only(words[2:]).place
    if words[0] == "which":
        colours = words[1:-3]
        (answer,) = {i.letter for i in items if i.letter and {*colours} <= {i.colour}}
        return answer
    if words[1] == "there":
        return "yes" if any(looks(item, words[2:]) for item in items) else "no"
    relation = next(name for name in RELATIONS if f" {name} " in question)
    a, b = (only(part.split()) for part in question.rstrip("?").split(f" {relation} "))
    x, y = RELATIONS[relation]
    return "yes" if x * (a.x - b.x) + y * (a.y - b.y) > 0.1 else "no"


def test_every_answer_can_be_rederived_from_the_picture():
    seen = collections.Counter()
    for index in range(80):
        example = SOURCE[index]
        for question in example.questions:
            assert rederived(question.question, example.image) == question.answer, question
            seen[question.kind] += 1
    assert set(seen) == set(KINDS) and min(seen.values()) > 15


@functools.cache
def answers() -> dict[str, collections.Counter]:
    """How often each answer comes, by kind of question."""
    found = {kind: collections.Counter() for kind in KINDS}
    for index in range(1000):
        for question in questions(SOURCE.scene(index), SceneConfig(), random.Random(index)):
            found[question.kind][question.answer] += 1
    return found


def test_yes_and_no_are_balanced():
    yesno = answers()["yesno"]
    assert yesno["yes"] / yesno.total() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        ("count", 0.25, 0.45),
        ("colour", 1 / 8, 0.16),
        ("shape", 1 / 9, 0.15),
        ("position", 1 / 9, 0.18),
        ("yesno", 0.5, 0.55),
        ("text", 1 / 8, 0.2),
    ],
)
def test_no_constant_answer_is_a_good_guess(kind, low, high):
    assert low <= max(answers()[kind].values()) / answers()[kind].total() <= high


def test_every_kind_of_edit_occurs_and_changes_only_what_it_names():
    seen = set()
    for index in range(150):
        edit = SOURCE.edit(index)
        seen.add(edit.kind)
        before, after = edit.before.objects, edit.after.objects
        kept = tuple(item for i, item in enumerate(before) if i not in edit.changed)
        assert edit.after.background == edit.before.background
        if edit.kind == "add":
            assert after[:-1] == before
            continue
        assert tuple(item for item in after if item in before) == kept
        fields = {"recolour": {"colour"}, "replace": {"shape", "letter"}, "move": {"x", "y"}}
        if edit.kind == "remove":
            assert after == kept and kept
            continue
        for i in edit.changed:
            names = [f.name for f in dataclasses.fields(SceneObject)]
            differing = {n for n in names if getattr(before[i], n) != getattr(after[i], n)}
            assert differing and differing <= fields[edit.kind]
    assert seen == set(EDIT_KINDS)


def test_pixels_away_from_the_edit_stay_the_same():
    for index in range(40):
        edit = SOURCE.edit(index)
        named = [edit.before.objects[i] for i in edit.changed]
        named += [item for item in edit.after.objects if item not in edit.before.objects]
        differs = np.any(render(edit.before) != render(edit.after), axis=-1)
        assert differs.any()
        rows, columns = np.nonzero(differs)
        for y, x in zip((rows + 0.5) / 64, (columns + 0.5) / 64, strict=True):
            assert any(max(abs(x - a.x), abs(y - a.y)) < 0.22 for a in named)
