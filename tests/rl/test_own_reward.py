"""A reward of the user's own that is wrong ends in one line which names its key."""

from __future__ import annotations

import types

import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.config import ConfigError
from unicom_jax.rl.build import REWARDS

ORIGINALS = types.SimpleNamespace(grids=np.zeros((4, 2), np.int32))


def right(frozen, originals, samples):
    return jnp.arange(4.0)


def whole(frozen, originals, samples):
    return jnp.float32(1)


def number(frozen, originals, samples):
    return 1.0


def few_arguments(frozen):
    return jnp.arange(4.0)


def failing(frozen, originals, samples):
    raise RuntimeError("no such\nthing")


def reward(name: str):
    config = {"g4u": {"own_reward": f"{__name__}.{name}"}}
    return REWARDS["own"]("g4u", config, None, None, None)


def test_a_number_a_sample_is_taken_as_it_is():
    assert reward("right")({}, ORIGINALS, None).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("whole", r"returned shape \(\); return an array of shape \(4,\)"),
        ("number", r"returned float; return an array"),
        ("few_arguments", "raised TypeError: few_arguments"),
        ("failing", "raised RuntimeError: no such; UNICOM_TRACEBACK=1"),
    ],
)
def test_another_result_or_an_error_is_named_with_its_key(name, words):
    with pytest.raises(ConfigError, match=rf"g4u.own_reward: \S+{name} {words}"):
        reward(name)({}, ORIGINALS, None)
