"""A small configuration compiled for eight TPU chips that are not there, with libtpu.

    make test-tpu
    UNICOM_WRITE_GOLDEN=1 make test-tpu        # after looking at what has changed

`tpu_exchanges.json` says which exchanges a step makes and how often. It changes when a model, a
placement or XLA does.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path

import pytest

from tests.tiny import tiny_config
from unicom_jax.parallel.plan.topology import parse_topology
from unicom_jax.planning.plan import GIB, plan_stage

pytestmark = [
    pytest.mark.tpu_aot,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu"),
]

# "kind along": how often a step runs it.
GOLDEN = Path(__file__).with_name("tpu_exchanges.json")


def small_plan(**options):
    config = tiny_config(
        mesh="data=2,fsdp=2,tensor=2",
        compute_dtype="bfloat16",
        pretrain__batch_size=8,
        unified__transformer__remat="full",
    )
    return plan_stage(config, "pretrain", parse_topology("v5e:2x4"), **options)


@pytest.fixture(scope="module")
def plan():
    return small_plan()


def test_the_exchanges_of_a_small_step_are_those_that_are_written_down(plan):
    found: dict[str, int] = {}
    for one in plan.roofline.exchanges:
        key = f"{one.kind} {','.join(one.axes)}"
        found[key] = found.get(key, 0) + one.count
    if os.environ.get("UNICOM_WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_a_step_is_planned_to_the_last_column(plan):
    assert sum(plan.held.values()) <= plan.peak < 0.1 * GIB and plan.fits
    assert 0 < plan.mfu_in_turn < plan.mfu < 1
    assert plan.unknown_loops == 0
    # Full remat runs the forward pass twice; the tensor axis splits every large product.
    assert 1 <= plan.computed_flops * 8 / plan.all_pairs_flops < 2


def test_the_least_effort_keeps_nothing_in_vmem_and_computes_the_same_products(plan, tmp_path):
    quick = small_plan(quick=True, keep=tmp_path)
    assert quick.how == "compiled with the least effort"
    assert quick.computed_flops == plan.computed_flops
    assert quick.roofline.terms["memory"] > plan.roofline.terms["memory"]
    assert "S(1)" not in (tmp_path / "pretrain.hlo").read_text()


def test_gradients_in_whole_tiles_are_scattered_and_not_all_reduced():
    """Over four devices 64 channels are 16 rows, a tile of bfloat16. Most weights are of MLPs."""
    config = tiny_config(mesh="data=2,fsdp=4", compute_dtype="bfloat16", pretrain__batch_size=8)
    config.encoder.vision.update({"width": 64})
    config.unified.transformer.update({"width": 64, "mlp_dim": 2048, "head_dim": 32})
    exchanges = plan_stage(config, "pretrain", parse_topology("v5e:2x4")).roofline.exchanges
    received: dict[str, float] = {}
    for one in exchanges:
        if "fsdp" in one.axes:
            received[one.kind] = received.get(one.kind, 0.0) + one.near
    assert received.get("all-reduce", 0.0) < 0.1 * received["reduce-scatter"], received
