"""Stages on packed rows with a purpose of their own: longcap and reca, after a trained model."""

from __future__ import annotations

import json
import shutil

import chex
import jax
import numpy as np
import pytest

from tests.parallel.programs import on_eight_devices
from tests.training.conftest import config, go
from tests.training.toy import assert_trees_differ
from unicom_jax.config.check import check_settings
from unicom_jax.families.build import build_unified
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.planning.program import make_program
from unicom_jax.runs import checkpoint
from unicom_jax.training.state import split

STAGES = ("encoder", "codec", "pretrain", "longcap", "reca")
SETTINGS = {"longcap__sequence_length": 160, "unified__transformer__tied_head": True}


@pytest.fixture(scope="module")
def redrawn(whole, tmp_path_factory):
    """The whole run, after which drawing was trained further. Not to be changed."""
    workdir = shutil.copytree(whole, tmp_path_factory.mktemp("redrawn") / "run")
    go(workdir, stages=STAGES, **SETTINGS)
    return workdir


def weights(workdir, label):
    return checkpoint.restore_params(workdir, label, build_unified(config()).abstract())


def last_line(workdir, label):
    found = [json.loads(line) for line in (workdir / label / "metrics.jsonl").open()]
    return [line for line in found if "loss" in line][-1]


def test_long_captions_teach_drawing_and_leave_words_alone(redrawn):
    line = last_line(redrawn, "longcap")
    assert np.isfinite(line["loss/flow"]) and line["loss"] == pytest.approx(5 * line["loss/flow"])
    before, after = weights(redrawn, "pretrain"), weights(redrawn, "longcap")
    embedding = (tree["transformer"].pop("embedding") for tree in (before, after))
    chex.assert_trees_all_equal(*embedding)
    for part in before:
        assert_trees_differ(before[part], after[part])


def test_redrawing_starts_from_the_stage_before_and_teaches_drawing(redrawn):
    assert np.isfinite(last_line(redrawn, "reca")["loss/flow"])
    before, after = weights(redrawn, "longcap"), weights(redrawn, "reca")
    for part in before:
        assert_trees_differ(before[part], after[part])
    assert json.loads((redrawn / "reca" / "stage.json").read_text())["compilations"] == 1


@pytest.mark.parametrize("label", ["reca", pytest.param("longcap", marks=pytest.mark.slow)])
def test_a_stopped_stage_resumes_to_the_last_bit(redrawn, tmp_path, label):
    workdir = shutil.copytree(redrawn, tmp_path / "run")
    shutil.rmtree(workdir / label / "checkpoints" / "4")
    (workdir / label / "stage.json").unlink()
    go(workdir, label, stages=STAGES, **SETTINGS)
    chex.assert_trees_all_equal(weights(redrawn, label), weights(workdir, label), strict=True)


@pytest.mark.parametrize("pathway", ["query", "cheers"])
@pytest.mark.parametrize("stage", ["longcap", "reca"])
def test_every_family_has_the_stages(pathway, stage):
    """Traced, not run. Where reader and drawer have weights of their own, the reader is frozen."""
    settings = config(unified__pathway=pathway, stages=(stage,))
    check_settings(settings, (stage,))
    program = make_program(settings, stage, make_mesh(settings.mesh))
    _, metrics = jax.eval_shape(
        program.trainer.train_step(), program.state, program.frozen, program.batch
    )
    assert ("loss/flow" in metrics) and ("loss/text" in metrics)
    trained, _ = split(program.stage.module.specs(), program.stage.freeze)
    assert ("transformer" in trained) == (pathway == "cheers")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["longcap", "reca"])
def test_the_losses_on_eight_devices_are_those_on_one(stage):
    printed = json.loads(on_eight_devices("-m", "tests.rl.eight", stage).stdout)
    for name, value in printed["one"]["metrics"].items():
        np.testing.assert_allclose(
            printed["eight"]["metrics"][name], value, rtol=1e-4, atol=1e-4, err_msg=name
        )
