"""Every stage on eight devices: the loss curve of one device, and every weight where it belongs.

The full matrix (25 minutes on one core of an AMD EPYC, most of it compiling):

    python -m pytest -n 1 -m slow tests/parallel
"""

from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from tests.parallel.programs import on_eight_devices
from tests.tiny import tiny_config
from unicom_jax.families.build import build_unified

STEPS = 20
# Name -> stage and settings. Attention in blocks where sequences are long, else at once.
STAGES = {
    "encoder": {"stage": "encoder"},
    "autoencoder": {
        "stage": "autoencoder",
        "autoencoder__perceptual_weight": 0.5,
        "autoencoder__discriminator__weight": 0.5,
        "autoencoder__discriminator__start": 2,
    },
    "codec": {"stage": "codec", "codec__perceptual_weight": 0.5},
    "align": {"stage": "align", "align__flow_weight": 0.0},
    "pretrain": {
        "stage": "pretrain",
        "pretrain__ema_decay": 0.5,
        "unified__transformer__attention_backend": "chunked",
    },
    "query": {"stage": "pretrain", "unified__pathway": "query"},
    "lora": {
        "stage": "pretrain",
        "pretrain__lora__rank": 2,
        "pretrain__diagnostics": True,
        "pretrain__ema_decay": 0.5,
        "pretrain__ema_warmup": True,
    },
}
CONTEXT = "fsdp=2,context=2,tensor=2"
MESHES = (CONTEXT, "fsdp=4,context=2", "data=2,fsdp=2,tensor=2", "data=2,context=4")


def case(name: str, mesh: str, steps: int = STEPS, **changes: object) -> str:
    return json.dumps({"mesh": mesh, "steps": steps, **STAGES[name], **changes})


@functools.cache
def ran(*cases: str) -> list[dict]:
    """What `tests.parallel.eight` prints of each case, all in one process."""
    text = f"[{','.join(cases)}]"
    printed = on_eight_devices("-m", "tests.parallel.eight", text).stdout
    return [json.loads(line) for line in printed.splitlines()]


def assert_as_on_one_device(name: str, mesh: str, **changes: object) -> None:
    one, eight = ran(case(name, ""), case(name, mesh, **changes))
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-4)
    assert eight["losses"][0] != eight["losses"][-1]
    assert eight["compilations"] == 1 and eight["moved"] == 0


@pytest.mark.slow
def test_pretraining_in_parts_over_context_is_as_on_one_device():
    """Accumulated too: two parts on eight devices equal one big batch on one."""
    assert_as_on_one_device("pretrain", CONTEXT, pretrain__accumulate=2)


def test_weights_moments_and_average_take_an_equal_share_of_every_device():
    (eight,) = ran(case("pretrain", CONTEXT, steps=2, pretrain__accumulate=2))
    held, whole = eight["bytes"], 4 * build_unified(tiny_config()).param_count()
    assert held["params"] < 0.3 * whole  # of eight shards; norms and biases are copies
    assert held["opt_state"] == pytest.approx(2 * held["params"], rel=0.01)
    assert held["ema"] == held["params"]
    assert eight["compilations"] == 1 and eight["moved"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_is_as_on_one_device(name, mesh):
    assert_as_on_one_device(name, mesh)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["align", "query"])
def test_accumulated_parts_on_a_mesh_equal_one_big_batch_on_one_device(name):
    stage = STAGES[name]["stage"]
    assert_as_on_one_device(name, CONTEXT, **{f"{stage}__accumulate": 2})
