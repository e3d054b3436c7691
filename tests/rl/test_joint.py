"""Captioner and drawer that learn together: whose reward is whose, and what is compared."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest

from tests.data.samples import tokenizer
from tests.rl.conftest import GROUP, MOST
from tests.tiny import tiny_config
from unicom_jax.config import ConfigError
from unicom_jax.runs.stages import START
from unicom_jax.training.stages.policy import joint_stage

DRAWINGS = 2
SETTINGS = {
    "rewards": {"own": 1.0, "pixels": 0.5, "length": 0.25},
    "own_reward": "tests.rl.own.brightness",
    "drawings": DRAWINGS,
    "least_tokens": 2,
    "most_tokens": 4,
    "times": 2,
    "drawing_weight": 3.0,
    "drawing_kl_weight": 0.5,
}


@pytest.fixture(scope="module")
def joint(made):
    return made(joint_stage, "jointly", **SETTINGS)


@pytest.fixture(scope="module")
def rolled(joint):
    stage, frozen, batch = joint
    return jax.jit(stage.prepare)(frozen[START], frozen, batch, jax.random.key(3))


def test_every_caption_is_drawn_several_times_and_worth_the_mean_of_its_drawings(rolled):
    captions, drawings = rolled.captions, rolled.drawings
    assert captions.tokens.shape == (2 * GROUP, MOST)
    assert len(drawings.words) == 2 * GROUP * DRAWINGS
    of_caption = np.asarray(drawings.words).reshape(2 * GROUP, DRAWINGS, -1)
    assert (of_caption == of_caption[:, :1]).all()
    drawn = np.asarray(drawings.scores.total).reshape(-1, DRAWINGS)
    parts, written = captions.scores.parts, np.asarray(captions.scores.total)
    assert parts.keys() == {"length", "drawings"}
    assert drawings.scores.parts.keys() == {"own", "pixels"}
    np.testing.assert_allclose(parts["drawings"], drawn.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(written, drawn.mean(axis=1) + 0.25 * parts["length"], rtol=1e-5)


def test_captions_are_compared_within_a_picture_and_drawings_within_a_caption(rolled):
    groups = {"captions": (rolled.captions, GROUP), "drawings": (rolled.drawings, DRAWINGS)}
    for name, (samples, group) in groups.items():
        gained = np.asarray(samples.scores.advantages).reshape(-1, group)
        np.testing.assert_allclose(gained.sum(axis=1), 0.0, atol=1e-4, err_msg=name)
        assert np.abs(gained).max() > 0, name


def test_the_loss_is_that_of_both_and_reaches_words_and_drawing(joint, rolled):
    stage, frozen, _ = joint
    weights = {"policy": 1.0, "kl": 1e-6, "drawing/policy": 3.0, "drawing/kl": 1.5}
    assert stage.weights == pytest.approx(weights)
    keys = jax.random.split(jax.random.key(0), 2 * GROUP)

    @jax.jit
    def gradient_of(shares):
        def total(params):
            terms = stage.loss(params, frozen, rolled, keys)
            return sum(share * terms[name][0] for name, share in shares.items()), terms

        return jax.grad(total, has_aux=True)(frozen[START])

    def norms(**shares):
        gradient, terms = gradient_of({"policy": 0.0, "drawing/policy": 0.0, **shares})
        return {part: float(optax.tree.norm(tree)) for part, tree in gradient.items()}, terms

    of_words, terms = norms(policy=1.0)
    of_drawing, _ = norms(**{"drawing/policy": 1.0})
    assert of_words["transformer"] > 0 and of_words["head"] == 0
    assert of_drawing["transformer"] > 0 and of_drawing["head"] > 0
    for name in ("kl", "drawing/kl"):  # the weights are those from before the stage
        assert float(terms[name][0] / terms[name][1]) == pytest.approx(0.0, abs=1e-6)
    assert {"length", "reward/drawings", "drawing/reward/own", "drawing/collapsed"} <= terms.keys()


@pytest.mark.slow
def test_captions_are_shown_with_the_first_of_their_drawings(joint, rolled):
    stage, frozen, batch = joint
    shown = jax.jit(stage.rollouts)(frozen[START], frozen, batch, jax.random.key(3))
    assert len(shown.samples.patches) == len(shown.samples.tokens) == 2 * GROUP
    np.testing.assert_allclose(shown.scores.total, rolled.captions.scores.total, rtol=1e-4)


def test_rewards_of_words_alone_are_refused():
    config = tiny_config(
        jointly__rewards__cosine=0.0,
        jointly__rewards__length=1.0,
        data__vocab_size=tokenizer().vocab_size,
    )
    with pytest.raises(ConfigError, match="jointly.rewards: none uses drawings"):
        joint_stage("jointly", config, tokenizer())
