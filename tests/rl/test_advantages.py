"""Advantages against cases worked out by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.rl.advantages import advantages, collapsed, combined_advantages

REWARDS = jnp.array([[1.0, 3.0, 5.0, 7.0], [2.0, 2.0, 2.0, 2.0]])
# Of the first group: mean 4, deviation sqrt((9 + 1 + 1 + 9) / 4) = sqrt(5).
CENTRED = np.array([[-3.0, -1.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0]])


def test_a_group_is_compared_with_its_own_mean_and_deviation():
    found = advantages(REWARDS, epsilon=0.0)
    np.testing.assert_allclose(found[0], CENTRED[0] / np.sqrt(5.0), rtol=1e-6)


def test_a_group_without_spread_has_no_advantage_whatever_rounding_says():
    third = jnp.full((1, 3), 0.1) * jnp.array([1.0, 1.0 + 1e-7, 1.0])
    for rewards in (REWARDS[1:], third):
        for spread in ("none", "group", "batch"):
            np.testing.assert_array_equal(advantages(rewards, spread, epsilon=0.0), 0.0)
    np.testing.assert_array_equal(collapsed(REWARDS), [False, True])
    np.testing.assert_array_equal(collapsed(jnp.zeros((1, 2))), [True])


def test_a_small_but_real_spread_is_no_collapse():
    assert not collapsed(jnp.array([[1.0, 1.00001]]))[0]
    found = advantages(jnp.array([[1.0, 1.0001]]), epsilon=0.0)
    np.testing.assert_allclose(found, [[-1.0, 1.0]], rtol=1e-2)


def test_without_a_deviation_differences_stay_as_they_are():
    np.testing.assert_allclose(advantages(REWARDS, "none"), CENTRED, atol=1e-6)


def test_the_deviation_of_the_batch_is_of_all_rewards():
    found = advantages(REWARDS, "batch", epsilon=0.0)
    np.testing.assert_allclose(found, CENTRED / np.asarray(REWARDS).std(), rtol=1e-6)


def test_a_clip_bounds_advantages():
    found = advantages(REWARDS, "none", clip=2.0)
    np.testing.assert_allclose(found[0], [-2.0, -1.0, 1.0, 2.0])


@pytest.mark.parametrize("factor", [1e-3, 7.0])
def test_a_positive_factor_of_the_reward_changes_nothing(factor):
    found = advantages(factor * REWARDS, epsilon=0.0)
    np.testing.assert_allclose(found, advantages(REWARDS, epsilon=0.0), rtol=1e-5)


def test_several_rewards_are_made_advantages_before_they_are_added():
    both = {"large": 100.0 * REWARDS, "small": -0.01 * REWARDS}
    found = combined_advantages(both, {"large": 2.0, "small": 1.0}, epsilon=0.0)
    np.testing.assert_allclose(found[0], CENTRED[0] / np.sqrt(5.0), rtol=1e-5)
    alone = combined_advantages({"large": REWARDS}, {"large": 1.0})
    np.testing.assert_array_equal(alone, advantages(REWARDS))


def test_what_cannot_be_an_advantage_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        advantages(jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="'std' is unknown"):
        advantages(REWARDS, "std")
    with pytest.raises(ValueError, match="differ"):
        combined_advantages({"a": REWARDS}, {"b": 1.0})
