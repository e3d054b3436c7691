"""Settings of reinforcement learning that do not go together are refused before anything runs."""

from __future__ import annotations

import pytest

from tests.tiny import tiny_config
from unicom_jax.config import ConfigError
from unicom_jax.config.check import check_settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"g4u__rewards__cosine": 0.0}, "g4u.rewards are all 0"),
        ({"g4u__rewards__own": 1.0}, "g4u.rewards.own=1.0 with g4u.own_reward=''"),
        ({"u4g__own_reward": "some.reward"}, "u4g.rewards.own=0.0 with"),
        ({"u4g__window": 3}, "u4g.window=3 does not fit before the last of u4g.draw_steps=3"),
        ({"g4u__least_tokens": 97}, "g4u.least_tokens=97 is above g4u.most_tokens=96"),
        ({"g4u__gates": ("size",)}, "g4u.gates"),
        ({"g4u__group_size": 1}, "g4u.group_size=1"),
        ({"u4g__objective": "ppo"}, "u4g.objective="),
    ],
)
def test_a_setting_that_cannot_be_names_its_key(changes, message):
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        check_settings(tiny_config(**changes), ("g4u", "u4g"))


def test_the_defaults_can_be_trained():
    check_settings(tiny_config(), ("g4u", "u4g"))
