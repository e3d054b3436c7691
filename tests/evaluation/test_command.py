"""`unicom evaluate` on a stand-in for the model."""

from __future__ import annotations

import dataclasses
import io
import json

import pytest
import rich.console
from ml_collections import ConfigDict
from PIL import Image

from data_pipelines.build import data_identity, open_examples
from data_pipelines.faults import SourceError
from data_pipelines.sources.split import TRAIN
from experiments import base, quickstart
from tests.data.mixed import entries, mixed_config, write_sources
from tests.evaluation.helpers import BlindModel, PerfectModel, examples
from unicom_jax.cli import main
from unicom_jax.config.schema import KEYS
from unicom_jax.evaluation import command
from unicom_jax.evaluation.answers import RULES
from unicom_jax.evaluation.report import write_report
from unicom_jax.evaluation.scores import read_about
from unicom_jax.evaluation.suite import EvaluationConfig


def small(config: ConfigDict) -> ConfigDict:
    config.evaluation.update(pictures=4, prompts=1, questions=1, edits=2)
    return config


def test_every_answer_rule_can_be_configured():
    assert KEYS["evaluation.answer_rule"].choices == tuple(RULES)


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
    some = [data.examples[index] for index in range(6)]
    words = set(" ".join(c for e in some for c in e.captions[:1]).split())
    assert {"circle", "square"} & words
    assert not {"star", "heart", "blue", "pink"} & words


def write_folder(folder, count=12):
    folder.mkdir()
    rows = []
    for index, example in enumerate(examples(count)):
        Image.fromarray(example.image).save(folder / f"{index}.png")
        rows.append({"image": f"{index}.png", "captions": list(example.captions)})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_folder_of_pictures_is_evaluated_without_a_judge(tmp_path):
    write_folder(tmp_path / "pictures")
    config = small(base.get_config())
    config.data.source.update(kind="folder", path=str(tmp_path / "pictures"), held_out=0.0)
    settings = dataclasses.replace(EvaluationConfig.of(config), pictures=12)
    halves = [
        command.data_of(as_stored(config), settings, split) for split in ("development", "test")
    ]
    keys = [{half.examples[i].key for i in range(len(half.examples))} for half in halves]
    assert not keys[0] & keys[1]
    assert len(keys[0] | keys[1]) == 12
    assert halves[0].prompts == ()


def test_several_sources_are_evaluated_together_and_without_a_judge(tmp_path):
    """Of stored configurations, which have lists for tuples."""
    config = mixed_config(entries(write_sources(tmp_path)))
    settings = dataclasses.replace(EvaluationConfig.of(config), pictures=20)
    data = command.data_of(as_stored(config), settings)
    keys = [example.key for example in data.examples]
    assert data.prompts == () and any("scene" in key for key in keys)
    assert any("scene" not in key for key in keys)


def test_a_half_of_too_few_records_says_what_to_do(tmp_path):
    write_folder(tmp_path / "pictures", count=4)
    config = small(base.get_config())
    config.data.source.update(kind="folder", path=str(tmp_path / "pictures"), held_out=0.0)
    with pytest.raises(SourceError, match="too few for intervals; hold out more"):
        for split in ("development", "test"):
            command.data_of(as_stored(config), EvaluationConfig.of(config), split)


def test_scenes_are_scored_in_the_shapes_of_the_image_policy():
    config = small(quickstart.get_config())
    config.data.scenes.sizes = ((48, 96), (96, 48))
    shapes = {"fixed": {(48, 48)}, "naflex": {(48, 96), (96, 48)}}
    for policy, expected in shapes.items():
        config.data.update(policy=policy, max_tokens=48 * 96 // config.data.patch**2)
        data = command.data_of(as_stored(config), EvaluationConfig.of(config))
        pictures = [data.examples[index].image for index in range(6)]
        pictures += [prompt.reference() for prompt in data.prompts]
        assert {picture.shape[:2] for picture in pictures} == expected, policy


def test_pictures_that_were_trained_on_are_not_evaluated(tmp_path):
    config = folder_config(tmp_path, 0.5)
    held = {
        example.key
        for split in ("development", "test")
        for example in command.data_of(config, EvaluationConfig.of(config), split).examples
    }
    trained = open_examples(config, TRAIN)
    assert held and not held & {trained[index].key for index in range(len(trained))}


@pytest.fixture
def stand_in(monkeypatch):
    """Replaces the models of the command; returns what was asked of them."""
    asked = []

    class Loaded:
        @staticmethod
        def load(workdir, step):
            asked.append(("load", step))
            model = PerfectModel()
            model.calls = asked
            return model

        @staticmethod
        def untrained(config, tokenizer):
            asked.append(("untrained", config["seed"]))
            return BlindModel()

    def use(config):
        monkeypatch.setattr(command, "Generator", Loaded)
        monkeypatch.setattr(command, "describe", lambda workdir: (as_stored(config), None))
        used = {"unified": ("pretrain", 12)}
        monkeypatch.setattr(command, "steps_in_use", lambda workdir, step: used)
        return asked

    return use


def folder_config(tmp_path, share):
    write_folder(tmp_path / "pictures", count=24)
    config = small(base.get_config())
    config.data.source.update(kind="folder", path=str(tmp_path / "pictures"), held_out=share)
    return config


@pytest.mark.parametrize(("share", "warned"), [(0.0, True), (0.5, False)])
def test_the_command_prints_the_table_and_says_when_nothing_was_held_out(
    tmp_path, stand_in, share, warned
):
    asked = stand_in(folder_config(tmp_path, share))
    stream = io.StringIO()
    console = rich.console.Console(file=stream, width=100)
    flat = command.run_evaluate(tmp_path, console, split="development", step="12")
    assert flat["understanding/caption"] == 1.0
    assert flat["understanding/caption.untrained"] == 0.0
    assert ("scores on training data" in stream.getvalue()) == warned
    assert "understanding/caption " in stream.getvalue()
    assert "scores on the development split" in stream.getvalue()
    about = read_about(tmp_path / "scores.json")
    assert (about["split"], about["trained_on"]) == ("development", warned)
    assert about["checkpoints"] == {"unified": "pretrain 12"}
    assert ("load", "12") in asked


def test_data_that_changed_since_training_are_reported(tmp_path, stand_in):
    config = folder_config(tmp_path, 0.5)
    stand_in(config)
    ((identity, _),) = data_identity(config).values()
    (tmp_path / "data.json").write_text(json.dumps({"identity": identity}))
    listing = tmp_path / "pictures" / "captions.jsonl"
    for warned in (False, True):
        stream = io.StringIO()
        console = rich.console.Console(file=stream, width=300)
        command.run_evaluate(tmp_path, console, baseline=False)
        assert (
            "the data changed since training: captions.jsonl has the same rows in"
            in stream.getvalue()
        ) == warned
        page = write_report(tmp_path).read_text(encoding="utf-8")
        assert ("may have been trained on" in page) == warned
        listing.write_text("".join(reversed(listing.read_text().splitlines(keepends=True))))


def test_the_command_leaves_the_untrained_model_out(tmp_path, stand_in):
    asked = stand_in(folder_config(tmp_path, 0.5))
    quiet = rich.console.Console(file=io.StringIO())
    flat = command.run_evaluate(tmp_path, quiet, baseline=False)
    assert flat["understanding/caption.untrained"] is None
    assert not [call for call in asked if call[0] == "untrained"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], {"step": "", "split": "test", "baseline": True, "suites": None, "best_of": 1}),
        (
            ["--step=best", "--split=development", "--no-baseline", "--best-of=4"],
            {
                "step": "best",
                "split": "development",
                "baseline": False,
                "suites": None,
                "best_of": 4,
            },
        ),
    ],
)
def test_the_flags_reach_the_command(tmp_path, monkeypatch, flags, expected):
    found = {}
    monkeypatch.setattr(
        command, "run_evaluate", lambda workdir, console, **choice: found.update(choice)
    )
    assert main(["evaluate", f"--workdir={tmp_path}", *flags]) == 0
    assert found == expected


def test_help_explains_the_flags(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    said = capsys.readouterr().out
    for text in ("--step", "--split", "--no-baseline", "outcomes.jsonl", "development"):
        assert text in said
