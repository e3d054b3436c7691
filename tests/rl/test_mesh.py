"""Rollouts on eight devices are those on one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.parallel.programs import on_eight_devices


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["g4u", "u4g", "joint"])
def test_rollouts_rewards_and_losses_on_eight_devices_are_those_on_one(stage):
    printed = json.loads(on_eight_devices("-m", "tests.rl.eight", stage).stdout)
    one, eight = printed["one"], printed["eight"]
    assert one["words"] == eight["words"]
    assert eight["rows"] == one["rows"] / 8
    for name, value in one["metrics"].items():
        np.testing.assert_allclose(
            eight["metrics"][name], value, rtol=1e-3, atol=1e-4, err_msg=name
        )
