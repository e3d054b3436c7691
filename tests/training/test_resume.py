"""A run that was stopped and resumed ends as one that was never stopped, to the last bit."""

from __future__ import annotations

import json
import shutil

import chex
import numpy as np
import pytest

from tests.training.conftest import config, go
from unicom_jax.families.build import build_codec, build_unified
from unicom_jax.runs import checkpoint as files
from unicom_jax.training.clock import CLOCK


def built(make, whole):
    return make(files.read_config(whole))


def weights(workdir, stage, module):
    return files.restore_params(workdir, stage, module.abstract())


def lines(workdir, stage):
    return [json.loads(line) for line in (workdir / stage / "metrics.jsonl").open()]


def losses(workdir, stage):
    """Step -> values, without what the clock says."""
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines(workdir, stage)]


def assert_same_weights(one, other, stage, module):
    left, right = (weights(workdir, stage, module) for workdir in (one, other))
    chex.assert_trees_all_equal(left, right, strict=True)


@pytest.fixture(scope="module")
def unified(whole, tmp_path_factory):
    """The run, stopped between steps 2 and 4 of `pretrain` and resumed; what it printed."""
    workdir = shutil.copytree(whole, tmp_path_factory.mktemp("resumed") / "run")
    shutil.rmtree(workdir / "pretrain" / "checkpoints" / "4")
    return workdir, go(workdir)


def test_a_unified_stage_ends_as_if_never_stopped(whole, unified):
    module = built(build_unified, whole)
    assert_same_weights(unified[0], whole, "pretrain", module)


def test_the_optimizer_and_the_raw_weights_end_as_if_never_stopped(whole, unified):
    def stored(workdir):
        path = workdir / "pretrain" / "checkpoints" / "4" / files.TRAIN
        with files.ocp.StandardCheckpointer() as reader:
            return reader.restore(path.absolute())

    left, right = stored(unified[0]), stored(whole)
    assert set(left) == {"step", "opt_state", "raw"}
    chex.assert_trees_all_equal(left, right, strict=True)
    assert int(left["step"]) == 4


def test_metrics_continue_without_gap_or_double(whole, unified):
    steps = [line["step"] for line in lines(unified[0], "pretrain") if "loss" in line]
    assert steps == [1, 2, 3, 4]
    assert losses(unified[0], "pretrain") == losses(whole, "pretrain")


def test_held_out_batches_are_evaluated(whole):
    evaluations = [line for line in lines(whole, "pretrain") if "eval/flow" in line]
    assert [line["step"] for line in evaluations] == [4]
    assert {"eval/text", "eval/text_accuracy"} <= evaluations[0].keys()


def test_a_stage_is_compiled_once_resumed_or_not(whole, unified):
    for workdir, stages in ((whole, ("encoder", "codec", "pretrain")), (unified[0], ("pretrain",))):
        for stage in stages:
            facts = json.loads((workdir / stage / "stage.json").read_text())
            assert facts["compilations"] == 1, (workdir, stage)


def test_a_run_says_where_it_resumes(whole, unified):
    printed = unified[1]
    assert "pretrain: resumes from the checkpoint of step 2" in printed
    assert "encoder: finished at step 4, nothing to do" in printed
    assert json.loads((unified[0] / "pretrain/stage.json").read_text())["resumed_from"] == 2
    assert json.loads((whole / "pretrain/stage.json").read_text())["resumed_from"] == 0


def test_the_codec_and_its_latent_statistics_end_as_if_never_stopped(whole, copy):
    resumed = copy("codec")
    go(resumed, "codec")
    module = built(build_codec, whole)
    left, right = weights(resumed, "codec", module), weights(whole, "codec", module)
    chex.assert_trees_all_equal(left, right, strict=True)
    assert float(np.abs(left["statistics"]["mean"]).max()) > 0  # they were measured
    facts = json.loads((resumed / "codec/stage.json").read_text())
    np.testing.assert_allclose(facts["latent_std"], left["statistics"]["std"])


def test_a_newest_checkpoint_cut_short_falls_back_to_the_one_before_and_says_so(whole, tmp_path):
    resumed = shutil.copytree(whole, tmp_path / "run")
    newest = resumed / "pretrain" / "checkpoints" / "4"
    shutil.rmtree(newest / files.PARAMS)
    printed = go(resumed, "pretrain")
    assert f"! checkpoint {newest}" in printed and "cannot be read" in printed
    assert "resumes from the checkpoint of step 2" in printed
    module = built(build_unified, whole)
    assert_same_weights(resumed, whole, "pretrain", module)


def test_a_finished_run_has_nothing_to_do(whole):
    before = (whole / "pretrain" / "stage.json").read_text()
    printed = go(whole)
    assert printed.count("nothing to do") == 3
    assert (whole / "pretrain" / "stage.json").read_text() == before


def test_the_configuration_is_stored_as_it_was_run(whole):
    stored = files.read_config(whole)
    assert stored["pretrain"]["steps"] == config().pretrain.steps
    assert stored["data"]["vocab_size"] > 0
