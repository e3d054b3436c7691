"""A new family is one file: the real loop trains it, whatever it does with pictures."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil

import chex
import jax
import numpy as np
import pytest
from rich.console import Console

from data_pipelines.build import load_or_train_tokenizer
from tests.families.toy import TOY
from tests.runs.workdirs import write_run
from tests.tiny import tiny_config
from unicom_jax.config import KEYS, from_json
from unicom_jax.core.batch import Role
from unicom_jax.families import build
from unicom_jax.inference.generator import Generator
from unicom_jax.runs import checkpoint
from unicom_jax.runs.loading import stage_loader
from unicom_jax.training.run import run_stages

CHOSEN = {"unified__pathway": "toy", "unified__fold": 2}


@pytest.fixture(scope="module", autouse=True)
def family():
    """`unified.pathway=toy`: one row in the table of families, one choice of the key."""
    key = KEYS["unified.pathway"]
    known = dataclasses.replace(key, choices=(*key.choices, "toy"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(build.FAMILIES, "toy", TOY)
        patch.setitem(KEYS, "unified.pathway", known)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Random encoder and codec, and the unified model trained by the real loop."""
    workdir = write_run(tmp_path_factory.mktemp("toy") / "run", **CHOSEN)
    shutil.rmtree(workdir / "pretrain")
    settings = from_json(json.loads((workdir / "config.json").read_text(encoding="utf-8")))
    run_stages(settings, workdir, Console(file=io.StringIO(), width=200), ("pretrain",))
    return workdir


def test_the_loop_trains_the_encoder_inside_the_loss(run):
    module = build.build_unified(checkpoint.read_config(run))
    trained = checkpoint.restore_params(run, "pretrain", module.abstract())
    fresh = jax.jit(module.init)(jax.random.key(0))
    assert set(trained) == {"transformer", "eye", "sketch", "time", "head"}
    chex.assert_tree_all_finite(trained)
    assert not np.array_equal(trained["eye"]["up"]["kernel"], fresh["eye"]["up"]["kernel"])
    assert (
        json.loads((run / "pretrain/stage.json").read_text(encoding="utf-8"))["compilations"] == 1
    )


def test_the_generator_draws_and_answers_with_it(run):
    generator = Generator.load(run)
    first, again, other = (
        generator.draw("a red circle", steps=2, seed=seed)[0].image for seed in (0, 0, 1)
    )
    assert first.shape == (32, 32, 3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(generator.answer([first], ["what is it?"], max_tokens=2)) == 1


def test_a_picture_of_four_latents_takes_one_slot():
    settings = tiny_config(**CHOSEN)
    batch = stage_loader(settings, "pretrain", load_or_train_tokenizer(settings, None)).at(0)
    assert np.all(batch.grids[batch.grids[..., 0] > 0] == 2)
    noisy = batch.roles == Role.NOISY
    assert noisy.sum() == (batch.draws >= 0).sum() and not batch.image_token[noisy].any()


def test_a_family_that_cannot_fold_refuses_it():
    with pytest.raises(ValueError, match="unified.fold=2: a slot of unified.pathway=transfusion"):
        build.build_unified(tiny_config(unified__fold=2))
