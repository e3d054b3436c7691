"""A stage with adapters in the real loop: what it trains, keeps, resumes from and hands on."""

from __future__ import annotations

import dataclasses
import shutil

import chex
import jax
import numpy as np
import pytest

from tests.tiny import tiny_config
from tests.training.conftest import config, go
from tests.training.test_step import TwoLayers, batch, stage, trainer
from tests.training.toy import assert_trees_differ
from unicom_jax.config import ConfigError
from unicom_jax.core.lora import BASE, Lora, base_weights, merge
from unicom_jax.families.build import build_unified
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.runs import weights
from unicom_jax.runs.checkpoint import restore_params
from unicom_jax.runs.workdir import stage_steps
from unicom_jax.training.assemble import make_trainer

SETTINGS = {
    "stages": ("encoder", "codec", "pretrain", "sft"),
    "sft__lora__rank": 2,
    "sft__sequence_length": 64,
    "sft__ema_decay": 0.5,
}


def test_a_stage_with_adapters_trains_them_alone_from_given_weights():
    base = TwoLayers().init(jax.random.key(9))
    chex.clear_trace_counter()
    toy = stage()
    toy = dataclasses.replace(toy, loss=chex.assert_max_traces(toy.loss, n=1))
    module = Lora(toy.module, rank=2, alpha=4.0, targets=("first",))
    one = trainer(dataclasses.replace(toy, module=module, freeze=(BASE,)), ema_decay=0.5)
    state, step = one.init_state(jax.tree.map(np.copy, base)), one.train_step()
    losses = []
    for _ in range(20):
        state, metrics = step(state, {}, batch())
        losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0]
    chex.assert_trees_all_equal(base_weights(state.params), base, strict=True)
    assert {leaf.shape for leaf in jax.tree.leaves(state.ema)} == {(3, 2), (2, 4)}
    moments = {leaf.shape for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim}
    assert moments == {(3, 2), (2, 4)}


@pytest.mark.slow
def test_a_run_keeps_the_base_resumes_its_adapters_and_hands_merged_weights_on(whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    assert "starts from the weights of pretrain" in go(workdir, "sft", **SETTINGS)
    module = build_unified(config(**SETTINGS))
    base = restore_params(workdir, "pretrain", module.abstract())
    apart = restore_params(workdir, "sft", module.abstract(), adapters=dict)
    # The averaged ones that pretrain left for use.
    chex.assert_trees_all_equal(base_weights(apart), base, strict=True)
    merged = restore_params(workdir, "sft", module.abstract())
    chex.assert_trees_all_equal(merged, merge(apart), strict=True)
    assert_trees_differ(merged, base)
    raw = restore_params(workdir, "sft", module.abstract(), raw=True)
    assert_trees_differ(raw, merged)
    _, _, used = weights.load(workdir)
    chex.assert_trees_all_equal(used["unified"], merged, strict=True)
    small = jax.tree.map(lambda leaf: leaf.update(dtype="bfloat16"), module.abstract())
    rounded = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), merged)
    chex.assert_trees_all_equal(restore_params(workdir, "sft", small), rounded, strict=True)
    shutil.rmtree(workdir / "sft" / "checkpoints" / "4")
    go(workdir, "sft", **SETTINGS)
    assert stage_steps(workdir, "sft") == [2, 4]
    again = restore_params(workdir, "sft", module.abstract())
    chex.assert_trees_all_equal(again, merged, strict=True)


def test_targets_that_name_no_layer_are_an_error_before_training():
    wrong = tiny_config(pretrain__lora__rank=2, pretrain__lora__targets=("transformer/attention",))
    with pytest.raises(ValueError, match="'transformer/attention' matches no linear layer"):
        make_trainer("pretrain", wrong, make_mesh(), lambda: iter(()))


def test_adapters_that_are_all_held_are_an_error():
    held = tiny_config(pretrain__lora__rank=2, pretrain__freeze=("transformer/.*",))
    with pytest.raises(Exception, match="pretrain trains no weight: freeze, groups or lora"):
        make_trainer("pretrain", held, make_mesh(), lambda: iter(()))


def test_an_adapter_over_a_held_layer_is_an_error_though_others_train():
    both = ("transformer/blocks/attention/query", "embedding/latent_in")
    held = {"pretrain__lora__rank": 2, "pretrain__freeze": ("transformer/.*",)}
    config = tiny_config(**held, pretrain__lora__targets=both)
    with pytest.raises(ConfigError, match="adapts transformer/blocks/attention/query, which"):
        make_trainer("pretrain", config, make_mesh(), lambda: iter(()))
