"""PPO's clip, k3 and the objective of a text, against cases worked out by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core.losses import mean
from unicom_jax.rl.policy import DAPO, Clip, k3, surrogate
from unicom_jax.rl.text_objectives import TextObjective

PPO = Clip(0.2, 0.2)


@pytest.mark.parametrize(
    ("ratio", "advantage", "clip", "value", "clipped"),
    [
        (1.5, 2.0, PPO, 2.4, True),  # good and already likelier: 1.2 · 2
        (0.5, 2.0, PPO, 1.0, False),  # good and less likely: the way back is free
        (1.5, -2.0, PPO, -3.0, False),  # bad and likelier: the way back is free
        (0.5, -2.0, PPO, -1.6, True),  # bad and already less likely: .8 · -2
        (1.25, 2.0, PPO, 2.4, True),
        (1.25, 2.0, DAPO, 2.5, False),  # DAPO lets it rise to 1.28
    ],
)
def test_the_clip_by_hand(ratio, advantage, clip, value, clipped):
    def gain(log_prob):
        return surrogate(log_prob, jnp.zeros(()), jnp.asarray(advantage), clip)[0]

    log_prob = jnp.log(ratio)
    found, clips = surrogate(log_prob, jnp.zeros(()), jnp.asarray(advantage), clip)
    assert float(found) == pytest.approx(value, rel=1e-6)
    assert bool(clips) == clipped
    slope = 0.0 if clipped else ratio * advantage
    assert float(jax.grad(gain)(log_prob)) == pytest.approx(slope, rel=1e-6)


def test_k3_by_hand_and_its_mean_is_the_kl():
    assert float(k3(jnp.log(0.5), jnp.log(0.25))) == pytest.approx(0.5 - np.log(0.5) - 1, rel=1e-6)
    assert float(k3(jnp.zeros(()), jnp.zeros(()))) == 0.0
    policy, reference = np.array([0.7, 0.2, 0.1]), np.array([0.2, 0.3, 0.5])
    expected = (policy * np.asarray(k3(jnp.log(policy), jnp.log(reference)))).sum()
    kl = (policy * np.log(policy / reference)).sum()
    assert expected == pytest.approx(kl, rel=1e-6)
    other = (reference * np.log(reference / policy)).sum()
    assert abs(kl - other) > 0.02  # so the sign of the difference matters


LOGS = jnp.log(jnp.array([[0.5, 0.25, 0.5], [0.5, 0.5, 0.5]]))
WRITTEN = jnp.array([[1, 1, 0], [1, 1, 1]])
ADVANTAGES = jnp.array([1.0, -2.0])


def test_a_constant_length_weighs_every_token_alike():
    """On-policy every ratio is 1: the sum is 2 tokens · 1 + 3 tokens · -2, over 2 rows of 3."""
    terms = TextObjective().terms(LOGS, LOGS, LOGS, ADVANTAGES, WRITTEN)
    assert float(mean(terms["policy"])) == pytest.approx(-(2 * 1.0 + 3 * -2.0) / 6)
    assert float(mean(terms["kl"])) == 0.0 and float(mean(terms["clip_share"])) == 0.0


def test_the_own_length_weighs_every_text_alike():
    terms = TextObjective(length="own").terms(LOGS, LOGS, LOGS, ADVANTAGES, WRITTEN)
    assert float(mean(terms["policy"])) == pytest.approx(-(1.0 - 2.0) / 2)


def test_kl_and_clip_share_are_of_written_tokens():
    terms = TextObjective(clip=PPO).terms(
        LOGS + jnp.log(1.5), LOGS, LOGS, jnp.array([1.0, -2.0]), WRITTEN
    )
    assert float(mean(terms["clip_share"])) == pytest.approx(2 / 5)  # the good text's two tokens
    each = 1 / 1.5 - np.log(1 / 1.5) - 1
    assert float(mean(terms["kl"])) == pytest.approx(5 * each / 6, rel=1e-5)


def test_the_first_gradient_is_that_of_reinforce():
    def loss(logs):
        return mean(TextObjective().terms(logs, LOGS, LOGS, ADVANTAGES, WRITTEN)["policy"])

    expected = -np.asarray(ADVANTAGES)[:, None] * np.asarray(WRITTEN) / 6
    np.testing.assert_allclose(jax.grad(loss)(LOGS), expected, rtol=1e-6)


def test_nothing_behind_a_text_reaches_its_loss_or_gradient():
    def loss(logs):
        terms = TextObjective().terms(logs, LOGS, LOGS, ADVANTAGES, WRITTEN)
        return mean(terms["policy"]) + mean(terms["kl"])

    strange = LOGS.at[0, 2].set(200.0)
    assert np.isfinite(loss(strange)) and float(loss(strange)) == float(loss(LOGS))
    assert np.isfinite(jax.grad(loss)(strange)).all()


def test_an_unknown_length_is_refused():
    with pytest.raises(ValueError, match="length 'mean' is unknown"):
        TextObjective(length="mean")
