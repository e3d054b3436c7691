"""What is drawn while a stage is trained: by its own weights, and without changing anything."""

from __future__ import annotations

import io
import json
import shutil

import chex
import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from tests.training.conftest import config
from unicom_jax.evaluation.while_training import make_observer
from unicom_jax.families.build import build_unified
from unicom_jax.inference.generator import Generator
from unicom_jax.runs.checkpoint import restore_params
from unicom_jax.training.run import run_stages

PROMPTS = ("a red circle", "a blue square")


def pictures_of(folder) -> dict[tuple[int, str], np.ndarray]:
    """(step, name) -> picture, of all event files."""
    found = {}
    for path in folder.glob("events*"):
        data, place = path.read_bytes(), 0
        while place < len(data):
            size = int.from_bytes(data[place : place + 8], "little")
            event = Event.FromString(data[place + 12 : place + 12 + size])
            place += 16 + size
            for value in event.summary.value:
                if value.WhichOneof("value") == "image":
                    png = Image.open(io.BytesIO(value.image.encoded_image_string))
                    found[event.step, value.tag] = np.asarray(png)
    return found


@pytest.fixture(scope="module")
def observed(whole, tmp_path_factory):
    workdir = shutil.copytree(whole, tmp_path_factory.mktemp("observed") / "run")
    shutil.rmtree(workdir / "pretrain" / "checkpoints" / "4")
    (workdir / "pretrain" / "stage.json").unlink()
    settings = config(
        pretrain__sample_every=2,
        sample__watched=PROMPTS,
        sample__scored=1,
        sample__guidance=2.0,
    )
    run_stages(
        settings, workdir, Console(file=io.StringIO()), ("pretrain",), make_observer=make_observer
    )
    return workdir


def test_pictures_of_the_prompts_are_drawn_by_the_weights_for_use(observed):
    found = pictures_of(observed / "pretrain" / "tensorboard")
    assert sorted(found) == [(4, f"sample/{i} {text}") for i, text in enumerate(PROMPTS)]
    generator = Generator.load(observed)
    drawn = generator.draw(PROMPTS, guidance=2.0, seed=generator.config["seed"])
    for (_, name), one in zip(sorted(found), drawn, strict=True):
        assert np.abs(found[4, name].astype(int) - one.image).max() <= 1, name


def test_scores_of_what_is_drawn_are_written_with_the_metrics(observed):
    lines = (observed / "pretrain" / "metrics.jsonl").read_text().splitlines()
    scored = [line for line in map(json.loads, lines) if "generation/overall" in line]
    assert [line["step"] for line in scored] == [4]
    assert all(0 <= value <= 1 for name, value in scored[0].items() if name != "step")


def test_a_look_at_the_model_changes_no_weight(observed, whole):
    module = build_unified(config())
    looked, alone = (
        restore_params(run, "pretrain", module.abstract(), step="4") for run in (observed, whole)
    )
    chex.assert_trees_all_equal(looked, alone, strict=True)
