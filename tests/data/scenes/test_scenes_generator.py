"""The generator: deterministic, free of overlap, anti-aliased, at any size."""

from __future__ import annotations

import dataclasses
import itertools
import pickle

import grain
import numpy as np
import pytest

from data_pipelines.scenes.render import render
from data_pipelines.scenes.scene import (
    COLOURS,
    LETTERS,
    PLACES,
    PLAIN_SHAPES,
    Scene,
    SceneConfig,
    SceneObject,
    overlaps,
    random_stream,
    sample_scene,
)
from data_pipelines.scenes.source import ScenesSource


def circle(height: int, width: int) -> Scene:
    item = SceneObject("circle", "red", "large", 0.5, 0.5)
    return Scene((item,), "white", height, width)


def test_a_record_depends_on_seed_and_index_alone():
    one, other = (
        ScenesSource(seed=3, with_edits=True),
        ScenesSource(seed=3, size=10, with_edits=True),
    )
    one[5]  # reading other records first makes no difference
    for index in (7, 2):
        a, b = one[index], other[index]
        np.testing.assert_array_equal(a.image, b.image)
        np.testing.assert_array_equal(a.edits[0].target, b.edits[0].target)
        assert (a.captions, a.questions, a.thought) == (b.captions, b.questions, b.thought)


def test_making_edits_changes_nothing_else():
    plain, edited = ScenesSource(seed=1)[4], ScenesSource(seed=1, with_edits=True)[4]
    np.testing.assert_array_equal(plain.image, edited.image)
    assert plain == dataclasses.replace(edited, image=plain.image, edits=())


def test_seeds_give_disjoint_scenes():
    train = {ScenesSource(seed=0).scene(i) for i in range(300)}
    held_out = {ScenesSource(seed=1).scene(i) for i in range(300)}
    assert len(train) == 300 and not train & held_out


def test_source_pickles_and_feeds_grain():
    source = pickle.loads(pickle.dumps(ScenesSource(size=4)))
    keys = [example.key for example in grain.MapDataset.source(source)]
    assert keys == [f"scenes/0/{i}" for i in range(4)]


def test_index_beyond_the_end_is_an_index_error():
    with pytest.raises(IndexError, match="4 records, asked for 4"):
        ScenesSource(size=4)[4]


@pytest.mark.parametrize("size", [(64, 64), (64, 112), (120, 64)])
def test_objects_never_overlap_nor_leave_the_picture(size):
    config = SceneConfig(sizes=(size,), object_weights=(0, 1, 1, 3))
    height, width = size
    for index in range(200):
        scene = sample_scene(config, random_stream(0, index, "test"))
        for a, b in itertools.combinations(scene.objects, 2):
            assert not overlaps(a, b, height, width)
        alone = [render(dataclasses.replace(scene, objects=(a,))) for a in scene.objects]
        empty = render(dataclasses.replace(scene, objects=()))
        marks = [np.any(image != empty, axis=-1) for image in alone]
        assert np.sum(marks, axis=0).max() == 1  # no pixel belongs to two objects
        border = np.any([m[[0, -1]].any() or m[:, [0, -1]].any() for m in marks])
        assert not border


def test_every_number_of_objects_and_every_look_occurs():
    scenes = [ScenesSource().scene(i) for i in range(500)]
    items = [item for scene in scenes for item in scene.objects]
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3, 4}
    assert {item.colour for item in items} == set(COLOURS)
    assert {item.shape for item in items} == {*PLAIN_SHAPES, "letter"}
    assert {item.letter for item in items} == {"", *LETTERS}


@pytest.mark.parametrize("jitter", [0.0, 0.01])
def test_objects_stray_from_their_places_by_no_more_than_the_jitter(jitter):
    config = SceneConfig(jitter=jitter)
    scenes = [sample_scene(config, random_stream(0, index, "test")) for index in range(100)]
    strays = [
        max(abs(item.x - PLACES[item.place][0]), abs(item.y - PLACES[item.place][1]))
        for scene in scenes
        for item in scene.objects
    ]
    assert 0.9 * jitter <= max(strays) <= jitter + 1e-9


def test_edges_are_anti_aliased():
    """The mean colour of a drawn disc gives its area to far better than a pixel's rounding."""
    image = render(circle(64, 64)).astype(float)
    share = (250.0 - image[..., 1]) / (250.0 - COLOURS["red"][1])
    assert np.logical_and(share > 0.05, share < 0.95).sum() > 30
    assert share.sum() == pytest.approx(np.pi * (0.92 * 0.19 * 64) ** 2, rel=5e-3)


def test_drawing_at_twice_the_resolution_shows_the_same_picture():
    for index in range(20):
        scene = ScenesSource().scene(index)
        small = render(scene).astype(float)
        large = render(scene, 128, 128).reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
        assert np.abs(small - large).mean() < 1.0


@pytest.mark.parametrize("size", [(48, 48), (64, 128), (100, 60)])
def test_any_size_and_aspect_ratio(size):
    example = ScenesSource(SceneConfig(sizes=(size,)))[0]
    assert example.image.shape == (*size, 3) and example.image.dtype == np.uint8


def test_circles_stay_round_in_wide_pictures():
    red = np.any(render(circle(60, 120)) != 250, axis=-1)
    rows, columns = red.any(axis=1).sum(), red.any(axis=0).sum()
    assert abs(int(rows) - int(columns)) <= 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shapes": ("blob",)}, "SceneConfig.shapes: .*blob.*choose from circle"),
        ({"colours": ()}, "SceneConfig.colours: empty"),
        ({"sizes": ((8, 64),)}, "SceneConfig.sizes"),
        ({"object_weights": (1, 1, 1, 1, 1)}, "SceneConfig.object_weights"),
        ({"alike_share": 0.9}, "alike_share"),
        ({"jitter": 0.1}, "SceneConfig.jitter: 0.1"),
    ],
)
def test_bad_configuration_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        SceneConfig(**change)


@pytest.mark.parametrize(
    ("shapes", "colours"),
    [
        (("circle",), ("red",)),
        (("circle",), ("red", "blue")),
        (("circle", "square"), ("red", "blue")),
        (("letter",), ("red",)),
    ],
)
def test_few_looks_give_examples_with_questions(shapes, colours):
    config = SceneConfig(
        shapes=shapes, colours=colours, letters=("A",), object_weights=(1, 1, 1, 1)
    )
    source = ScenesSource(config, size=200, with_edits=True)
    examples = [source[index] for index in range(200)]
    assert all(example.questions for example in examples)
    assert any(example.edits for example in examples)


def test_a_scene_that_allows_no_edit_is_an_example_without_one():
    config = SceneConfig(shapes=("circle",), colours=("red",), object_weights=(0, 0, 0, 1))
    source = ScenesSource(config, size=20, with_edits=True)
    bare = [index for index in range(20) if not source[index].edits]
    assert bare
    with pytest.raises(ValueError, match="its scene allows no edit; give at least two colours"):
        source.edit(bare[0])
