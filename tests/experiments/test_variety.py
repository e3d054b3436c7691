"""`experiments.benchmarks.variety`: what its numbers count."""

from __future__ import annotations

import pytest

from data_pipelines.scenes.render import render
from data_pipelines.scenes.scene import PLACES, Scene, SceneObject
from experiments.benchmarks.variety import PROMPTS, effective, variety


def drawn(*objects, background="white"):
    placed = tuple(
        SceneObject(shape, colour, "large", *PLACES[place]) for shape, colour, place in objects
    )
    return render(Scene(placed, background, 64, 64))


def test_equally_frequent_values_are_counted_and_rare_ones_weigh_less():
    assert effective([]) == 0.0 and effective("aaaa") == 1.0
    assert effective("abcabc") == pytest.approx(3.0)
    assert 1.0 < effective("aaaaaaab") < 2.0


def test_places_are_layouts_and_colours_are_looks_and_wrong_drawings_count_as_neither():
    here, there = (("ring", "red", place) for place in ("top left", "bottom right"))
    found = variety("a red ring", [drawn(here), drawn(there), drawn(("ring", "blue", "middle"))])
    assert (found.correct, found.layouts, found.looks) == (2, pytest.approx(2.0), 1.0)
    gray = variety("a red ring", [drawn(here), drawn(here, background="gray")])
    assert (gray.layouts, gray.looks) == (1.0, pytest.approx(2.0))
    assert variety("a red ring", [drawn(here, ("cross", "red", "middle"))]).correct == 0


def test_every_prompt_is_in_the_grammar_of_scenes():
    assert all(variety(prompt, []).correct == 0 for prompt in PROMPTS)
