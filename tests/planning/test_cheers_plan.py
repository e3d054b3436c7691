"""A Cheers configuration is planned like any other, with the work of its own modules."""

from __future__ import annotations

import jax
import pytest

from tests.planning.test_plan import text_of
from tests.tiny import tiny_config
from unicom_jax.parallel.plan.topology import parse_topology
from unicom_jax.planning.estimate import estimate_stage
from unicom_jax.planning.plan import plan_stage
from unicom_jax.planning.table import module_table, plan_table

MODULES = {
    *("autoencoder", "decoder", "vision", "projector", "transformer", "logits"),
    *("semantics", "gate", "details"),
}


def cheers(**overrides):
    chosen = {
        "unified__pathway": "cheers",
        "unified__fold": 2,
        "unified__transformer__depth": 1,
        "data__patch": 8,
        "pretrain__images_per_row": 1,
        "pretrain__sequence_length": 32,
    }
    return tiny_config(**{**chosen, **overrides})


def test_a_step_of_cheers_is_estimated():
    config = cheers(mesh="fsdp=8", pretrain__batch_size=8)
    plan = estimate_stage(config, "pretrain", parse_topology("h100:8"))
    assert plan.fits and plan.peak > sum(plan.held.values())
    assert 0 < plan.mfu < 1 and plan.computed_flops * 8 >= plan.model_flops
    assert plan.parameters["autoencoder (given)"][0] > 0
    assert "estimated" in text_of(plan_table([plan]))


@pytest.mark.slow
def test_a_compiled_step_of_cheers_shows_the_work_of_every_module():
    # What belongs to which module does not depend on LLVM.
    jax.config.update("jax_disable_most_optimizations", True)
    config = cheers(pretrain__batch_size=1)
    plan = plan_stage(config, "pretrain", parse_topology("cpu:1"))
    work = {one.name: one.flops for one in plan.roofline.modules}
    assert all(work[name] > 0 for name in MODULES)
    assert sum(work.values()) == pytest.approx(plan.computed_flops)
    assert sum(plan.held.values()) <= plan.peak and plan.unknown_loops == 0
    table = text_of(module_table(plan))
    assert all(name in table for name in (*MODULES, "the rest"))
