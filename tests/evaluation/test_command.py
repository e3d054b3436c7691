"""`unicom evaluate` on a stand-in for the model."""

from __future__ import annotations

import io
import json

import pytest
import rich.console
from ml_collections import ConfigDict
from PIL import Image

from data_pipelines.build import open_examples
from data_pipelines.sources.split import TRAIN
from experiments import base, quickstart
from tests.evaluation.helpers import BlindModel, PerfectModel, examples
from unicom_jax.evaluation import command
from unicom_jax.evaluation.suite import EvaluationConfig


def small(config: ConfigDict) -> ConfigDict:
    config.evaluation.update(pictures=4, prompts=1, questions=1, edits=2)
    return config


def as_stored(config: ConfigDict) -> dict:
    """A configuration after its way through config.json."""
    return json.loads(config.to_json())


@pytest.mark.parametrize("config", [base.get_config(), quickstart.get_config()])
def test_every_key_of_the_shipped_configurations_is_understood(config):
    settings = EvaluationConfig.of(config)
    assert settings.prompts == config.evaluation.prompts
    assert settings.steps == config.sample.steps


def test_scenes_are_drawn_from_the_distribution_that_was_trained_on():
    config = small(quickstart.get_config())
    config.data.scenes.update(shapes=("circle", "square"), colours=("red", "green"))
    data = command.data_of(as_stored(config), EvaluationConfig.of(config))
    words = set(" ".join(c for e in data.examples for c in e.captions[:1]).split())
    assert {"circle", "square"} & words
    assert not {"star", "heart", "blue", "pink"} & words


def write_folder(folder):
    folder.mkdir()
    rows = []
    for index, example in enumerate(examples(5)):
        Image.fromarray(example.image).save(folder / f"{index}.png")
        rows.append({"image": f"{index}.png", "captions": list(example.captions)})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_folder_of_pictures_is_evaluated_without_a_judge(tmp_path):
    write_folder(tmp_path / "pictures")
    config = small(base.get_config())
    config.data.source.update(kind="folder", path=str(tmp_path / "pictures"), held_out=0.0)
    data = command.data_of(as_stored(config), EvaluationConfig.of(config))
    assert len(data.examples) == 5
    assert data.prompts == ()


def test_pictures_that_were_trained_on_are_not_evaluated(tmp_path):
    write_folder(tmp_path / "pictures")
    config = small(base.get_config())
    config.data.source.update(kind="folder", path=str(tmp_path / "pictures"), held_out=0.5)
    held = {
        example.key for example in command.data_of(config, EvaluationConfig.of(config)).examples
    }
    trained = open_examples(config, TRAIN)
    assert held and not held & {trained[index].key for index in range(len(trained))}


@pytest.mark.parametrize(("share", "told"), [(0.0, True), (0.5, False)])
def test_the_command_prints_the_table_and_says_when_nothing_was_held_out(
    tmp_path, monkeypatch, share, told
):
    write_folder(tmp_path / "pictures")
    config = small(base.get_config())
    config.data.source.update(kind="folder", path=str(tmp_path / "pictures"), held_out=share)

    class Loaded:
        @staticmethod
        def load(workdir):
            model = PerfectModel()
            model.config, model.tokenizer = as_stored(config), None
            return model

        @staticmethod
        def untrained(config, tokenizer):
            return BlindModel()

    monkeypatch.setattr(command, "Generator", Loaded)
    stream = io.StringIO()
    flat = command.run_evaluate(tmp_path, rich.console.Console(file=stream, width=100))
    assert flat["understanding/caption"] == 1.0
    assert flat["understanding/caption.untrained"] == 0.0
    assert ("scores on training data" in stream.getvalue()) == told
    assert "understanding/caption " in stream.getvalue()
