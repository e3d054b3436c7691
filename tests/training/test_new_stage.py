"""A stage that only rows of the tables add, repeated, and stages that other runs have begun.

The new stage reads the mean brightness of a picture off its own copy of the vision tower, which
starts from the trained encoder; the frozen encoder's features are compared with its own.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shutil

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import base
from tests.training.conftest import config
from tests.training.toy import assert_trees_differ
from unicom_jax.config import KEYS
from unicom_jax.config import STAGES as DECLARED
from unicom_jax.config.key import Group
from unicom_jax.config.keys.training import TRAINING
from unicom_jax.core.layers import Linear
from unicom_jax.core.module import Module
from unicom_jax.core.pixels import to_unit
from unicom_jax.evaluation.report_inputs import read_run
from unicom_jax.families.build import VISION, build_encoder
from unicom_jax.models.vision_encoder import VisionEncoder
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.planning.program import make_program
from unicom_jax.runs import checkpoint as files
from unicom_jax.runs.stages import PARTS, STAGES, Part, StageSpec
from unicom_jax.runs.weights import steps_in_use
from unicom_jax.training.run import run_stages
from unicom_jax.training.stages import LOSSES
from unicom_jax.training.step import Stage


@dataclasses.dataclass(frozen=True)
class Brightness(Module):
    vision: VisionEncoder

    @property
    def head(self) -> Linear:
        return Linear(self.vision.width, 1)

    def specs(self):
        return {"vision": self.vision.specs(), "head": self.head.specs()}


def build_brightness(config) -> Brightness:
    return Brightness(build_encoder(config).vision)


def brightness_stage(name, config, batches) -> Stage:
    module = build_brightness(config)

    def loss(params, frozen, batch, keys):
        pixels = to_unit(batch.patches)
        features = module.vision(params["vision"], pixels, batch.grids)
        given = module.vision(frozen["eyes"], pixels, batch.grids)
        read = module.head(params["head"], features).mean((1, 2))
        count = jnp.float32(len(read))
        apart = jnp.square(features - given).mean((1, 2)).sum()
        error = jnp.square(read - pixels.mean((1, 2))).sum()
        return {"error": (error, count), "apart": (apart, count)}

    return Stage(name, module, loss, {"error": 1.0}, freeze=tuple(config[name]["freeze"]))


@pytest.fixture
def brightness(monkeypatch):
    """Rows of the tables: all that a new stage takes."""
    row = StageSpec(
        "brightness",
        part="eyes",
        loss="brightness",
        loader="pictures",
        tokens_per_step=lambda config, name: config[name]["batch_size"],
        frozen={"eyes": VISION},
        starts_from={"vision": VISION},
    )
    monkeypatch.setitem(
        PARTS, "eyes", Part(build_brightness, lambda config: "encoder.vision.remat")
    )
    monkeypatch.setitem(LOSSES, "brightness", brightness_stage)
    monkeypatch.setitem(STAGES, "brightness", row)
    monkeypatch.setitem(DECLARED, "brightness", Group("Settings.", TRAINING))
    for name, key in TRAINING.items():
        monkeypatch.setitem(KEYS, f"brightness.{name}", key)


def with_brightness(*stages):
    made = config(stages=stages)
    with made.unlocked():
        made.brightness = base.training(
            steps=3, batch_size=4, log_every=1, warmup_steps=1, save_every=1, learning_rate=1e-4
        )
    return made


def train(settings, workdir, *labels) -> str:
    printed = io.StringIO()
    run_stages(settings, workdir, Console(file=printed, width=1000), labels or None)
    return printed.getvalue()


def weights(workdir, label, module):
    return files.restore_params(workdir, label, module.abstract())


def losses(workdir, label):
    lines = [json.loads(line) for line in (workdir / label / "metrics.jsonl").open()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def test_rows_of_the_tables_are_all_that_a_new_stage_takes(whole, tmp_path, brightness):
    workdir = shutil.copytree(whole, tmp_path / "run")
    settings = with_brightness("encoder", "codec", "pretrain", "brightness", "brightness")
    printed = train(settings, workdir)
    assert "brightness: starts with vision from the weights of encoder" in printed
    assert "brightness-2: starts from the weights of brightness" in printed

    first = json.loads((workdir / "brightness" / "metrics.jsonl").open().readline())
    assert first["loss/apart"] == 0.0  # both towers are the trained one
    module = build_brightness(settings)
    once, twice = (weights(workdir, label, module) for label in ("brightness", "brightness-2"))
    assert_trees_differ(once, twice)
    assert losses(workdir, "brightness")[0] != losses(workdir, "brightness-2")[0]
    names = [stage.name for stage in read_run(workdir).stages]
    assert names == ["encoder", "codec", "pretrain", "brightness", "brightness-2"]

    # A repetition that was stopped resumes in its own folder.
    shutil.rmtree(workdir / "brightness-2" / "checkpoints" / "3")
    printed = train(settings, workdir)
    assert "starts from" not in printed and "brightness: finished" in printed
    chex.assert_trees_all_equal(weights(workdir, "brightness-2", module), twice, strict=True)

    program = make_program(settings, "brightness", make_mesh(settings.mesh))
    assert program.frozen_specs.keys() == {"eyes"} and program.tokens == 4


@pytest.mark.slow
def test_a_repeated_stage_of_the_unified_model_is_the_one_that_is_used(whole, tmp_path):
    workdir = shutil.copytree(whole, tmp_path / "run")
    settings = config(stages=("encoder", "codec", "pretrain", "pretrain"))
    assert steps_in_use(workdir)["unified"] == ("pretrain", 4)
    printed = train(settings, workdir, "pretrain-2")
    assert "pretrain-2: starts from the weights of pretrain" in printed
    assert steps_in_use(workdir)["unified"] == ("pretrain-2", 4)
    assert losses(workdir, "pretrain")[0] != losses(workdir, "pretrain-2")[0]
    facts = json.loads((workdir / "pretrain-2" / "stage.json").read_text())
    assert facts["stage"] == "pretrain-2" and facts["compilations"] == 1


@pytest.mark.slow
def test_a_stage_of_another_run_is_trained_further_where_only_its_weights_are_known(
    whole, tmp_path
):
    base_run, workdir = shutil.copytree(whole, tmp_path / "base"), tmp_path / "sweep"
    given = f"{base_run}:pretrain"
    overrides = {"stages": ("sft",), "sft__init_from": given, "sft__sequence_length": 64}
    printed = train(config(**overrides), workdir)
    assert "sft: starts from the weights that were imported" in printed
    shutil.rmtree(base_run)
    assert "sft: finished" in train(config(**overrides), workdir)
    used = {"vision": ("encoder", 0), "codec": ("codec", 0), "unified": ("sft", 4)}
    assert steps_in_use(workdir) == used
    module = build_encoder(config(**overrides))
    taken, trained = (weights(one, "encoder", module) for one in (workdir, whole))
    chex.assert_trees_all_equal(taken, trained, strict=True)
    assert np.isfinite([loss for _, loss in losses(workdir, "sft")]).all()
