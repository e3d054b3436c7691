"""Reinforcement learning that starts from another run's weights: what it knows as the policy before
it."""

from __future__ import annotations

import chex
import jax
import pytest
from rich.console import Console

from tests.families.documents import lively
from tests.runs.workdirs import write_run
from tests.tiny import tiny_config
from tests.training.toy import assert_trees_differ
from unicom_jax.families.build import build_unified
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.runs import checkpoint as files
from unicom_jax.runs import weights
from unicom_jax.runs.imported import check_stages, import_frozen_parts, keep_starts
from unicom_jax.runs.stages import START, Occurrence
from unicom_jax.runs.start import start_run
from unicom_jax.training.run import _frozen_parts


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("other") / "run")


def begin(config, workdir):
    """What `run_stages` does before it trains."""
    check_stages(config)
    start_run(config, workdir)
    import_frozen_parts(config, workdir, Console(quiet=True))
    keep_starts(config, workdir)


def save(config, workdir, label, step, seed):
    """A checkpoint that the stage would write."""
    params = lively(build_unified(config), seed, 0.5)
    with files.open_manager(workdir / label / "checkpoints", keep=1) as manager:
        files.save(manager, step, params, {"step": step}, {"next_step": step, "seed": 0})
        manager.wait_until_finished()
    return params


def start_of(config, workdir, stage):
    return _frozen_parts(stage, config, workdir, make_mesh("", jax.devices()[:1]))[START]


@pytest.mark.parametrize("first", ["g4u", "u4g"])
def test_a_policys_start_is_what_it_took_over_however_long_it_has_trained(other, tmp_path, first):
    config = tiny_config(stages=(first,), **{f"{first}__init_from": f"{other}:pretrain"})
    workdir, stage = tmp_path / "run", Occurrence(first)
    begin(config, workdir)
    taken = weights.load(workdir)[2]["unified"]
    chex.assert_trees_all_equal(taken, weights.load(other)[2]["unified"], strict=True)
    chex.assert_trees_all_equal(start_of(config, workdir, stage), taken, strict=True)
    later = save(config, workdir, first, 5, seed=9)
    assert not (workdir / first / "checkpoints" / "0").exists()
    begin(config, workdir)
    chex.assert_trees_all_equal(start_of(config, workdir, stage), taken, strict=True)
    chex.assert_trees_all_equal(weights.load(workdir)[2]["unified"], later, strict=True)
    assert_trees_differ(later["transformer"], taken["transformer"])


def test_a_second_policy_starts_from_the_first_one(other, tmp_path):
    config = tiny_config(stages=("g4u", "u4g"), g4u__init_from=f"{other}:pretrain")
    begin(config, tmp_path / "run")
    later = save(config, tmp_path / "run", "g4u", 5, seed=9)
    found = start_of(config, tmp_path / "run", Occurrence("u4g"))
    chex.assert_trees_all_equal(found, later, strict=True)


def test_a_policy_can_start_from_another_runs_policy(other, tmp_path):
    """Not from what that one started from."""
    first = tiny_config(stages=("u4g",), u4g__init_from=f"{other}:pretrain")
    begin(first, tmp_path / "first")
    trained = save(first, tmp_path / "first", "u4g", 5, seed=9)
    config = tiny_config(stages=("u4g",), u4g__init_from=f"{tmp_path / 'first'}:u4g")
    begin(config, tmp_path / "second")
    found = start_of(config, tmp_path / "second", Occurrence("u4g"))
    chex.assert_trees_all_equal(found, trained, strict=True)
