"""The judge: exact on the generator's own pictures, no better than chance on wrong captions."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from scipy import ndimage

from data_pipelines.scenes.geneval import (
    CATEGORIES,
    cases,
    edit_verdict,
    prompts,
    verdict,
    wrong_caption_chance,
)
from data_pipelines.scenes.judge import read_scene
from data_pipelines.scenes.language import parse
from data_pipelines.scenes.render import render
from data_pipelines.scenes.scene import Scene, SceneConfig, SceneObject, random_stream, sample_scene
from data_pipelines.scenes.source import ScenesSource

SIZES = [(64, 64), (128, 96)]


def looks(scene_or_reading) -> list[tuple]:
    return sorted((i.shape, i.letter, i.colour, i.size, i.place) for i in scene_or_reading.objects)


@functools.cache
def drawn_cases(category: str, size: tuple[int, int]):
    count = 300 if size == (64, 64) else 150
    pairs = cases(category, count, seed=21, config=SceneConfig(sizes=(size,)))
    return pairs, [render(scene) for scene, _ in pairs]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("category", CATEGORIES)
def test_own_pictures_score_at_least_99_percent(category, size):
    pairs, images = drawn_cases(category, size)
    right = [verdict(image, p).correct for image, (_, p) in zip(images, pairs, strict=True)]
    assert np.mean(right) >= 0.99


@pytest.mark.parametrize("category", CATEGORIES)
def test_wrong_captions_score_no_more_than_chance(category):
    """Chance: how often the wrong caption happens to be true, computed from the true scenes."""
    pairs, images = drawn_cases(category, (64, 64))
    wrong = [prompt for _, prompt in [*pairs[1:], pairs[0]]]
    right = [verdict(image, p).correct for image, p in zip(images, wrong, strict=True)]
    assert np.mean(right) <= wrong_caption_chance(pairs) <= 0.2


@pytest.mark.parametrize(
    ("weights", "counts"),
    [((3, 3, 2, 2), {2, 3, 4}), ((1, 1, 1), {2, 3}), ((3, 1), {2}), ((1,), {2}), ((3, 1, 0), {2})],
)
def test_counting_asks_for_no_more_objects_than_scenes_of_the_configuration_have(weights, counts):
    pairs = cases("counting", 40, config=SceneConfig(object_weights=weights))
    assert {len(scene.objects) for scene, _ in pairs} == counts
    assert {phrase.count for _, prompt in pairs for phrase in prompt.requirement.phrases} == counts


def test_counting_needs_one_shape_and_one_colour_only():
    config = SceneConfig(object_weights=(1, 1), shapes=("circle",), colours=("red",))
    assert {len(scene.objects) for scene, _ in cases("counting", 4, config=config)} == {2}
    with pytest.raises(ValueError, match="needs two shapes and two colours"):
        cases("two", 4, config=config)


@pytest.mark.parametrize("size", [(40, 40), (48, 64), (96, 48), (160, 160)])
def test_reads_every_property_at_many_sizes(size):
    config = SceneConfig(sizes=(size,))
    scenes = [sample_scene(config, random_stream(5, i, "test")) for i in range(100)]
    readings = [read_scene(render(scene)) for scene in scenes]
    right = [looks(s) == looks(r) for s, r in zip(scenes, readings, strict=True)]
    assert np.mean(right) >= 0.99
    grounds = [s.background == r.background for s, r in zip(scenes, readings, strict=True)]
    assert np.mean(grounds) >= 0.99


def test_centres_and_boxes_are_those_of_the_object():
    item = SceneObject("heart", "blue", "large", 0.3, 0.62)
    (found,) = read_scene(render(Scene((item,), "night", 64, 96))).objects
    assert (found.x, found.y) == pytest.approx((item.x, item.y), abs=0.005)
    left, top, right, bottom = found.box
    assert left <= 0.3 * 96 < right and top <= 0.62 * 64 < bottom
    assert right - left < 2 * 0.19 * 64 + 2


@pytest.mark.parametrize(("blur", "noise"), [(0.6, 0.0), (1.0, 0.0), (0.0, 12.0), (0.7, 8.0)])
def test_tolerates_moderate_blur_and_noise(blur, noise):
    rng = np.random.default_rng(0)
    right = []
    for index in range(80):
        scene = ScenesSource(seed=9).scene(index)
        image = ndimage.gaussian_filter(render(scene).astype(float), (blur, blur, 0))
        image = np.clip(image + noise * rng.standard_normal(image.shape), 0, 255)
        right.append(looks(read_scene(image.astype(np.uint8))) == looks(scene))
    assert np.mean(right) >= 0.95


def test_touching_objects_of_two_colours_are_distinguished():
    items = (
        SceneObject("square", "red", "large", 0.35, 0.5),
        SceneObject("square", "blue", "large", 0.65, 0.5),
    )
    reading = read_scene(render(Scene(items, "white", 64, 64)))
    assert looks(reading) == looks(Scene(items, "white", 64, 64))


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_picture_has_no_objects(value):
    assert read_scene(np.full((64, 64, 3), value, np.uint8)).objects == ()


def test_pure_noise_satisfies_no_prompt():
    rng = np.random.default_rng(0)
    for prompt in prompts("colours", 30, seed=2):
        assert not verdict(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8), prompt).correct


def test_a_shapeless_blob_is_unknown():
    """Two far-apart lobes joined by a thread look like none of the shapes."""
    canvas = np.full((64, 64, 3), 250, np.uint8)
    canvas[28:36, 8:56] = canvas[10:54, 8:12] = canvas[10:54, 52:56] = (222, 36, 40)
    canvas[10:14, 8:56:2] = (222, 36, 40)
    assert [item.shape for item in read_scene(canvas).objects] == ["unknown"]


@pytest.mark.parametrize("image", [np.zeros((64, 64), np.uint8), np.zeros((64, 64, 3), np.float32)])
def test_refuses_what_is_no_picture(image):
    with pytest.raises(ValueError, match="give .H, W, 3. uint8"):
        read_scene(image)


@pytest.mark.parametrize("category", CATEGORIES)
def test_prompts_are_reproducible_and_follow_the_grammar(category):
    first, again = prompts(category, 20, seed=4), prompts(category, 20, seed=4)
    assert first == again != prompts(category, 20, seed=5)
    assert all(parse(prompt.text) == prompt.requirement for prompt in first)


def test_unknown_category_is_named():
    with pytest.raises(ValueError, match="category 'colors'; choose from single"):
        prompts("colors", 1)


def edits(count: int):
    source = ScenesSource(seed=17)
    return [source.edit(index) for index in range(count)]


def test_exact_targets_are_successful_edits():
    verdicts = [edit_verdict(render(e.before), render(e.after), e) for e in edits(100)]
    assert np.mean([v.correct for v in verdicts]) >= 0.99


def test_doing_nothing_keeps_everything_and_reaches_nothing():
    for edit in edits(60):
        image = render(edit.before)
        result = edit_verdict(image, image, edit)
        assert result.kept and not result.reached


def test_altering_another_object_or_the_ground_is_not_kept():
    recolours = [e for e in edits(200) if e.kind == "recolour" and len(e.changed) == 1]
    edit = next(e for e in recolours if len(e.before.objects) == 2)
    before = render(edit.before)
    ground = "black" if edit.after.background != "black" else "white"
    elsewhere = dataclasses.replace(edit.after, background=ground)
    result = edit_verdict(before, render(elsewhere), edit)
    assert result.reached and not result.kept
    assert result.reason.startswith("ground changed")
    bystander = next(i for i in range(2) if i not in edit.changed)
    rest = tuple(item for i, item in enumerate(edit.after.objects) if i != bystander)
    lost = edit_verdict(before, render(dataclasses.replace(edit.after, objects=rest)), edit)
    assert lost.reached and not lost.kept
    assert lost.reason.endswith("is missing")
