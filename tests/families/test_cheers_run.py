"""Cheers by the real commands: trained over an encoder and an autoencoder, resumed, and used."""

from __future__ import annotations

import json
import shutil

import chex
import jax
import numpy as np
import pytest
from rich.console import Console

from tests.data.samples import picture
from tests.families.real_runs import assert_resumes_bit_for_bit, restored, settings_of, train
from tests.parallel.programs import on_eight_devices
from tests.runs.workdirs import begin_run, write_run
from tests.tiny import tiny_config
from tests.training.toy import assert_trees_differ
from unicom_jax.config import ConfigError
from unicom_jax.families.build import build_autoencoder, build_encoder, build_unified
from unicom_jax.inference.generator import Generator
from unicom_jax.runs.configuration import open_run
from unicom_jax.training.run import run_stages

pytestmark = pytest.mark.slow
CHOSEN = {  # 32 pixels, 4 x 4 tokens, 2 x 2 slots
    "unified__pathway": "cheers",
    "unified__fold": 2,
    "data__patch": 8,
    "stages": ("pretrain",),
    "evaluation__batch_size": 2,
}
PICTURES = [picture(0, 32, 32), picture(1, 32, 32)]


@pytest.fixture(scope="module")
def printed_and_run(tmp_path_factory):
    workdir = begin_run(
        tiny_config(**CHOSEN),
        tmp_path_factory.mktemp("cheers") / "run",
        lambda config: {
            "encoder": (build_encoder(config), 0.15),
            "autoencoder": (build_autoencoder(config), 0.2),
        },
    )
    return train(workdir), workdir


@pytest.fixture(scope="module")
def run(printed_and_run):
    """Not to be changed."""
    return printed_and_run[1]


def test_decoder_and_encoder_start_as_copies_and_are_trained_inside_the_loss(printed_and_run):
    printed, run = printed_and_run
    config = settings_of(run)
    trained = restored(run, "pretrain", build_unified(config))
    assert set(trained) == {"transformer", "decoder", "vision", "projector", "head"}
    frozen = restored(run, "autoencoder", build_autoencoder(config))
    given = {
        "vision": restored(run, "encoder", build_encoder(config))["vision"],
        "decoder": {name: frozen[name] for name in trained["decoder"]},
    }
    for part, source in (("vision", "encoder"), ("decoder", "autoencoder")):
        assert f"pretrain: starts with {part} from the weights of {source}\n" in printed
        apart = jax.tree.map(lambda x, y: np.abs(x - y).max(), trained[part], given[part])
        assert 0 < max(jax.tree.leaves(apart)) < 0.02  # four steps away
    held = trained["decoder"]["statistics"], trained["vision"]["head"]
    chex.assert_trees_all_equal(held, (frozen["statistics"], given["vision"]["head"]), strict=True)
    facts = json.loads((run / "pretrain/stage.json").read_text(encoding="utf-8"))
    assert facts["compilations"] == 1


def test_the_gate_is_reported_by_time(run):
    lines = (run / "pretrain/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    names = {name for line in lines for name in json.loads(line)}
    assert any(name.startswith("loss/gate/t") for name in names)


def test_a_stopped_stage_resumes_bit_for_bit(run, tmp_path):
    assert_resumes_bit_for_bit(run, tmp_path / "run")


def test_the_generator_draws_edits_and_answers(run):
    generator, drawing = Generator.load(run), {"steps": 2, "guidance": 3.0, "shift": 2.0}
    first, again, other = (
        generator.draw("a red circle", seed=seed, **drawing)[0].image for seed in (0, 0, 1)
    )
    assert first.shape == (32, 32, 3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert generator.edit(PICTURES, "paint it green", **drawing)[1].shape == (32, 32, 3)
    assert len(generator.answer(PICTURES, "how many?", max_tokens=2)) == 2


def test_captioner_and_drawer_learn_in_turns(run, tmp_path):
    """By rewards that compare no features, as this run has no frozen encoder."""
    workdir, labels = shutil.copytree(run, tmp_path / "run"), ("g4u", "u4g")
    rewards = {f"{label}__rewards__{one}": 1.0 for label in labels for one in ("scenes", "latents")}
    none = {f"{label}__rewards__cosine": 0.0 for label in labels}
    changes = {"stages": ("pretrain", *labels), "u4g__learning_rate": 1e-2, **rewards, **none}
    config = tiny_config(**{**CHOSEN, **changes})
    config.data.update(
        {k: settings_of(run).data[k] for k in ("vocab_size", "tokenizer_fingerprint")}
    )
    run_stages(config, workdir, Console(quiet=True), labels)
    module = build_unified(config)
    before, described, drew = (restored(workdir, one, module) for one in ("pretrain", *labels))
    for part in before.keys() - {"transformer"}:  # the captioner learns words alone
        chex.assert_trees_all_equal(before[part], described[part], strict=True)
    assert_trees_differ(before["transformer"], described["transformer"])
    for part in ("transformer", "head", "decoder", "vision"):  # the drawer all that draws
        assert_trees_differ(described[part], drew[part])
    for label in labels:
        line = json.loads((workdir / label / "metrics.jsonl").read_text().splitlines()[0])
        assert np.isfinite([line["loss/reward/latents"], line["loss/policy"]]).all()
        facts = json.loads((workdir / label / "stage.json").read_text(encoding="utf-8"))
        assert facts["compilations"] == facts["prepare_compilations"] == 1
    again = shutil.copytree(workdir, tmp_path / "again")
    shutil.rmtree(again / "u4g/checkpoints/2")
    (again / "u4g/stage.json").unlink()
    run_stages(config, again, Console(quiet=True), ("u4g",))
    chex.assert_trees_all_equal(restored(again, "u4g", module), drew, strict=True)


def test_a_run_of_the_other_family_is_refused(tmp_path):
    other = write_run(tmp_path / "other")
    with pytest.raises(ConfigError, match="unified.pathway='transfusion', now it is 'cheers'"):
        open_run(other, None, ["--config.unified.pathway=cheers"])


def test_eight_devices_train_as_one():
    chosen = {key: value for key, value in CHOSEN.items() if key != "stages"}
    case = {"stage": "pretrain", "steps": 3, **chosen}
    cases = [{**case, "mesh": ""}, {**case, "mesh": "fsdp=2,context=2,tensor=2"}]
    printed = on_eight_devices("-m", "tests.parallel.eight", json.dumps(cases)).stdout
    one, eight = map(json.loads, printed.splitlines()[-2:])
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-4)
    assert eight["compilations"] == 1 and eight["moved"] == 0
