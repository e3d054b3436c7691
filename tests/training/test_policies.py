"""Stages of reinforcement learning: rollouts on the training mesh, curves, and resuming."""

from __future__ import annotations

import json
import shutil

import chex
import numpy as np
import pytest
from rich.console import Console

from tests.training.conftest import config, go
from tests.training.test_observer import pictures_of
from tests.training.toy import assert_trees_differ
from unicom_jax.evaluation.while_training import make_observer
from unicom_jax.families.build import build_unified
from unicom_jax.runs import checkpoint
from unicom_jax.training.run import run_stages

ALTERNATION = ("g4u", "u4g", "g4u")
EVERY = {
    "g4u__rewards__scenes": 1.0,
    "g4u__rewards__long_caption": 1.0,
    "g4u__rewards__answers": 1.0,
    "g4u__rewards__ended": 1.0,
    "g4u__rewards__length": 1.0,
    "g4u__rewards__own": 1.0,
    "g4u__own_reward": "tests.rl.own.brightness",
    "g4u__gates": ("length",),
    "g4u__kl_weight": 0.1,
    "g4u__inner_steps": 2,
    "u4g__rewards__pixels": 1.0,
    "u4g__rewards__latents": 1.0,
    "u4g__inner_steps": 2,
    "u4g__accumulate": 2,
    "u4g__learning_rate": 1e-2,
}


@pytest.fixture(scope="module")
def alternated(whole, tmp_path_factory):
    """The whole run, after which captioner and drawer learned in turns. Not to be changed."""
    workdir = shutil.copytree(whole, tmp_path_factory.mktemp("alternated") / "run")
    go(workdir, stages=("encoder", "codec", "pretrain", *ALTERNATION), **EVERY)
    return workdir


def weights(workdir, label):
    return checkpoint.restore_params(workdir, label, build_unified(config()).abstract())


def lines(workdir, label):
    found = [json.loads(line) for line in (workdir / label / "metrics.jsonl").open()]
    return [line for line in found if "loss" in line]


def test_every_reward_and_every_curve_is_reported(alternated):
    curves = {"policy", "kl", "clip_share", "length", "reward", "advantage_spread", "collapsed"}
    captioner, drawer = (lines(alternated, label)[-1] for label in ("g4u", "u4g"))
    names = ("cosine", "scenes", "long_caption", "answers", "ended", "length", "own")
    for name in (*curves, "gated", *(f"reward/{one}" for one in names)):
        assert np.isfinite(captioner[f"loss/{name}"]), name
    for name in (*curves, *(f"reward/{one}" for one in ("cosine", "pixels", "latents"))):
        assert np.isfinite(drawer[f"loss/{name}"]), name
    parts = [captioner[f"loss/reward/{one}"] for one in names]
    assert captioner["loss/reward"] == pytest.approx(sum(parts), rel=1e-4)
    assert 0 < captioner["loss/length"] <= 6


def test_the_first_update_stands_at_the_weights_before_the_stage(alternated):
    """Two updates a batch: only the second one has left the policy that wrote, and the metrics are
    of the last; `u4g` begins a step anew with what `g4u` left."""
    first = lines(alternated, "g4u")[0]
    assert first["loss/kl"] >= 0 and first["step"] == 1
    assert lines(alternated, "u4g")[1]["loss/kl"] > 0


def test_the_captioner_learns_words_and_leaves_all_that_draws_alone(alternated):
    before, after = weights(alternated, "pretrain"), weights(alternated, "g4u")
    for part in before.keys() - {"transformer"}:
        chex.assert_trees_all_equal(before[part], after[part])
    assert_trees_differ(before["transformer"], after["transformer"])


def test_stages_continue_from_each_other_in_turns(alternated):
    chain = [weights(alternated, label) for label in ("g4u", "u4g", "g4u-2")]
    for one, other in zip(chain, chain[1:], strict=False):
        assert_trees_differ(one["transformer"], other["transformer"])
    chex.assert_trees_all_equal(chain[1]["head"], chain[2]["head"])
    assert_trees_differ(chain[0]["head"], chain[1]["head"])


def test_rollout_and_update_are_one_program_each(alternated):
    for label in ("g4u", "u4g", "g4u-2"):
        facts = json.loads((alternated / label / "stage.json").read_text())
        assert facts["compilations"] == facts["prepare_compilations"] == 1, label


@pytest.mark.parametrize("label", ["g4u-2", pytest.param("u4g", marks=pytest.mark.slow)])
def test_a_stopped_stage_resumes_to_the_last_bit(alternated, tmp_path, label):
    workdir = shutil.copytree(alternated, tmp_path / "run")
    steps = sorted((workdir / label / "checkpoints").iterdir(), key=lambda path: path.name)
    assert len(steps) == 2
    shutil.rmtree(steps[-1])
    (workdir / label / "stage.json").unlink()
    go(workdir, label, stages=("encoder", "codec", "pretrain", *ALTERNATION), **EVERY)
    chex.assert_trees_all_equal(weights(alternated, label), weights(workdir, label), strict=True)


@pytest.mark.slow
def test_both_learn_together_and_resume_to_the_last_bit(whole, tmp_path):
    settings = {
        "stages": ("encoder", "codec", "pretrain", "joint"),
        "joint__rewards__scenes": 1.0,
        "joint__rewards__length": 1.0,
        "joint__accumulate": 2,
        "joint__inner_steps": 2,
        "joint__learning_rate": 1e-2,
    }
    workdir = shutil.copytree(whole, tmp_path / "run")
    go(workdir, "joint", **settings)
    before, after = weights(workdir, "pretrain"), weights(workdir, "joint")
    for part in ("transformer", "head"):
        assert_trees_differ(before[part], after[part])
    last = lines(workdir, "joint")[-1]
    worth = last["loss/drawing/reward"]
    assert last["loss/reward/drawings"] == pytest.approx(worth, rel=1e-4)
    facts = json.loads((workdir / "joint" / "stage.json").read_text())
    assert facts["compilations"] == facts["prepare_compilations"] == 1
    shutil.rmtree(workdir / "joint/checkpoints/2")
    (workdir / "joint/stage.json").unlink()
    go(workdir, "joint", **settings)
    chex.assert_trees_all_equal(weights(workdir, "joint"), after, strict=True)


@pytest.mark.slow
def test_rollouts_are_shown_beside_their_pictures_and_change_nothing(alternated, tmp_path):
    workdir = shutil.copytree(alternated, tmp_path / "run")
    for label in ("u4g", "g4u-2"):
        shutil.rmtree(workdir / label)
    settings = config(
        stages=("encoder", "codec", "pretrain", *ALTERNATION),
        u4g__sample_every=1,
        sample__scored=0,
        sample__watched=("a red circle",),
        **EVERY,
    )
    run_stages(settings, workdir, Console(quiet=True), ("u4g",), make_observer=make_observer)
    chex.assert_trees_all_equal(weights(alternated, "u4g"), weights(workdir, "u4g"), strict=True)
    found = pictures_of(workdir / "u4g" / "tensorboard")
    names = ("rollout/0", "rollout/1", "sample/0 a red circle")
    assert sorted(found) == [(step, name) for step in (1, 2) for name in names]
    shown = json.loads((workdir / "u4g/rollouts/rollouts.json").read_text())
    assert shown["step"] == 2 and len(shown["rows"]) == 2
    assert [len(row["samples"]) for row in shown["rows"]] == [2, 2]
    assert (workdir / "u4g/rollouts/0_1.png").is_file()
