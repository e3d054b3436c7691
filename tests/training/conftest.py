"""One tiny run of all stages, made once and copied by the tests that damage it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from tests.tiny import tiny_config
from unicom_jax.training.run import run_stages

# Checkpoints at steps 2 and 4; the unified stage accumulates, averages and evaluates as well.
SETTINGS = {
    "codec__ema_decay": 0.5,
    "pretrain__ema_decay": 0.5,
    "pretrain__eval_every": 4,
    "pretrain__eval_batches": 1,
    "pretrain__eval_by_task": True,
    "pretrain__sequence_length": 64,
}


def config(**overrides):
    return tiny_config(**{**SETTINGS, **overrides})


def go(workdir: Path, *stages: str, **overrides) -> str:
    """Trains `stages` (all when none is named) in `workdir`; what it printed."""
    printed = io.StringIO()
    run_stages(config(**overrides), workdir, Console(file=printed, width=1000), stages or None)
    return printed.getvalue()


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """A run that was never stopped. Not to be changed."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    go(workdir)
    return workdir


@pytest.fixture
def copy(whole, tmp_path) -> Callable[..., Path]:
    """`copy("pretrain")`: the run up to a stage, whose last checkpoint is not there yet."""

    def stopped(stage: str) -> Path:
        workdir = shutil.copytree(whole, tmp_path / "run")
        shutil.rmtree(workdir / stage / "checkpoints" / "4")
        (workdir / stage / "stage.json").unlink()
        return workdir

    return stopped
