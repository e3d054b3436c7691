"""Weights & Biases gets what the JSON lines get. A stand-in takes its place."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from unicom_jax.core.losses import reported
from unicom_jax.training.metrics import MetricWriter, format_note, known


class Run:
    def __init__(self, options):
        self.options, self.logged, self.finished = options, [], False

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.finished = True


@pytest.fixture
def runs(monkeypatch):
    """The runs that are opened, in order."""
    opened = []

    def init(**options):
        opened.append(Run(options))
        return opened[-1]

    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(init=init, Image=lambda x: ("image", x.shape))
    )
    return opened


def test_wandb_gets_every_step_and_its_end(runs, tmp_path):
    with MetricWriter(tmp_path / "codec", wandb_project="demo") as writer:
        writer.write(3, {"loss": 0.5})
    (run,) = runs
    assert run.options["project"] == "demo"
    assert run.options["name"] == f"{tmp_path.name}/codec"
    assert run.options["group"] == tmp_path.name
    assert run.logged == [(3, {"loss": 0.5})] and run.finished


def test_wandb_and_tensorboard_get_pictures(runs, tmp_path):
    picture = np.zeros((8, 8, 3), np.uint8)
    with MetricWriter(tmp_path / "pretrain", wandb_project="demo") as writer:
        writer.show(3, {"sample/a red circle": picture})
    (step, logged), *_ = runs[0].logged
    assert step == 3 and logged["sample/a red circle"] == ("image", picture.shape)
    (events,) = (tmp_path / "pretrain/tensorboard").iterdir()
    assert b"sample/a red circle" in events.read_bytes()


def test_a_resumed_stage_continues_its_wandb_run_and_another_opens_its_own(runs, tmp_path):
    for stage, first_step in (("codec", 0), ("codec", 2), ("pretrain", 0)):
        MetricWriter(tmp_path / stage, first_step, "demo").close()
    begun, continued, other = (run.options for run in runs)
    assert begun["id"] == continued["id"] != other["id"] and continued["resume"] == "allow"


def test_wandb_that_is_missing_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"pip install 'unicom_jax\[wandb\]'"):
        MetricWriter(tmp_path, wandb_project="demo")


def test_a_part_of_a_term_without_a_token_is_left_out_and_other_nan_is_kept():
    nothing = (jnp.zeros(()), jnp.zeros(()))
    half = (jnp.float32(3.0), jnp.float32(2.0))
    terms = {"flow": nothing, "flow/t0.25": nothing, "flow/t0.50": half}
    values = {f"loss/{name}": float(value) for name, value in reported(terms).items()}
    values |= {"loss": math.nan, "gradient_norm/head": math.nan}
    left = known(values, "loss/")
    assert left["loss/flow/t0.50"] == 1.5 and left["loss/flow"] == 0.0
    assert set(left) == {*values} - {"loss/flow/t0.25"}
    assert set(known({"flow/t0.25": math.nan, "flow": math.nan})) == {"flow"}


def test_what_a_person_watches_leaves_the_parts_out():
    assert format_note({"loss/flow": 0.5, "loss/flow/t0.25": 0.4}) == "flow 0.5"
