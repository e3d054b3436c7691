"""`experiments.benchmarks.denoising`: its losses are those of denoisers that are known exactly."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.scenes.scene import SceneConfig
from experiments.benchmarks.denoising import (
    RESPECTS,
    affine_loss,
    distance_table,
    exact_losses,
    nearest,
    scenes_of_one,
)


def test_the_affine_loss_of_independent_channels_is_that_of_wieners_filter():
    spread = np.array([0.5, 2.0])
    pictures = np.random.default_rng(0).standard_normal((20_000, 2)) * spread
    time = 0.4
    wanted = np.mean(spread**2 * (1 - time) ** 2 / (time**2 * spread**2 + (1 - time) ** 2))
    assert affine_loss(pictures, pictures, time) == pytest.approx(wanted, rel=0.03)


def test_a_prompt_that_names_the_picture_leaves_no_error_and_noise_alone_leaves_the_variance():
    pictures, rng = np.array([[-1.0, 0.0], [1.0, 0.0]]), np.random.default_rng(0)
    alone, prompted = exact_losses(pictures, np.array([0, 1]), 0.0, 100, rng)
    assert alone == pytest.approx(0.5) and prompted == pytest.approx(0.0)
    alone, prompted = exact_losses(pictures, np.array([0, 0]), 0.3, 4000, rng)
    assert alone == pytest.approx(prompted)
    # By numerical integration over z_t: the posterior mean is tanh(t z_t / (1 - t)²).
    noise = np.random.default_rng(1).standard_normal(200_000)
    mean = np.tanh(0.3 * (0.3 + 0.7 * noise) / 0.7**2)
    assert alone == pytest.approx(np.mean((mean - 1) ** 2) / 2, rel=0.1)


def test_the_nearest_picture_differs_in_the_respect_alone():
    labels = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    pictures = np.array([[0.0, 0.0], [0.0, 3.0], [4.0, 0.0], [4.0, 1.0]])
    found = nearest(pictures, labels, 0)
    assert found == pytest.approx([4.0, np.hypot(4, 2), 4.0, np.hypot(4, 2)])


def test_a_respect_in_which_no_scenes_differ_has_no_distance():
    scenes, labels = scenes_of_one(
        SceneConfig(shapes=("ring", "square"), colours=("red", "blue"), backgrounds=("white",))
    )
    pictures = np.random.default_rng(0).standard_normal((len(scenes), 3))
    (respects,) = (column.cells for column in distance_table(pictures, labels).columns[:1])
    assert tuple(respects) == RESPECTS[:3]  # all but the background


def test_scenes_of_one_object_have_every_shape_letter_colour_place_and_background():
    scenes, labels = scenes_of_one(
        SceneConfig(shapes=("ring", "letter"), letters=("L", "T"), colours=("red", "blue"))
    )
    assert len(scenes) == len(labels) == 3 * 2 * 9 * len(SceneConfig().backgrounds)
    assert len(set(scenes)) == len(scenes) and all(len(one.objects) == 1 for one in scenes)
