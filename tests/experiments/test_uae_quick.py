"""`experiments/uae_quick.py`: it fits the quickstart whose weights it takes, and its control says
nothing."""

from __future__ import annotations

import numpy as np

from experiments import quickstart, uae_quick
from unicom_jax.config.check import check_settings
from unicom_jax.families.build import build_codec, build_encoder, build_unified
from unicom_jax.rl.samples import Originals, Samples
from unicom_jax.runs.origin import origins


def test_its_first_stage_takes_the_quickstarts_weights_and_its_modules_are_the_same():
    config, base = uae_quick.get_config(), quickstart.get_config()
    check_settings(config, config.stages)
    (origin,) = origins(config)
    assert origin.stage.name == config.stages[0] and origin.source.name == base.stages[-1]
    for build in (build_encoder, build_codec, build_unified):
        assert build(config) == build(base)


def test_the_random_reward_is_a_number_of_the_drawing_that_says_nothing_about_it():
    rng = np.random.default_rng(0)
    original = rng.integers(0, 256, (1, 9, 768), dtype=np.uint8)
    drawn = rng.uniform(-1, 1, (256, 9, 768)).astype(np.float32)
    originals = Originals(np.repeat(original, 256, axis=0), np.full((256, 2), 3))

    def reward(patches):
        return np.asarray(uae_quick.random_reward({}, originals, Samples(patches=patches)))

    found = reward(drawn)
    assert found.min() >= 0 and found.max() < 1 and abs(found.mean() - 0.5) < 0.06
    np.testing.assert_array_equal(found, reward(drawn))
    distance = np.square(drawn - (original / 127.5 - 1)).mean((1, 2))
    assert abs(np.corrcoef(found, distance)[0, 1]) < 0.15
