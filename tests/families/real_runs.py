"""Runs of a family by the real loop: their settings, their training, their weights."""

from __future__ import annotations

import io
import json
import shutil

import chex
from rich.console import Console

from unicom_jax.config import from_json
from unicom_jax.families.build import build_unified
from unicom_jax.runs import checkpoint
from unicom_jax.training.run import run_stages


def settings_of(workdir):
    return from_json(json.loads((workdir / "config.json").read_text(encoding="utf-8")))


def train(workdir, stage: str = "pretrain") -> str:
    """Trains a stage; what the console shows."""
    shown = io.StringIO()
    run_stages(settings_of(workdir), workdir, Console(file=shown, width=1000), (stage,))
    return shown.getvalue()


def restored(workdir, stage, module):
    return checkpoint.restore_params(workdir, stage, module.abstract())


def assert_resumes_bit_for_bit(run, place, stage: str = "pretrain"):
    """A copy of `run` without its last checkpoint is trained to the same weights."""
    workdir = shutil.copytree(run, place)
    shutil.rmtree(workdir / stage / "checkpoints/4")
    (workdir / stage / "stage.json").unlink()
    assert "starts with" not in train(workdir, stage)
    module = build_unified(settings_of(run))
    both = (restored(one, stage, module) for one in (run, workdir))
    chex.assert_trees_all_equal(*both, strict=True)
