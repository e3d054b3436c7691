"""UAE by the real commands: its decoder trained over an autoencoder, resumed, and used."""

from __future__ import annotations

import json
import shutil

import chex
import jax
import numpy as np
import pytest

from tests.data.samples import picture
from tests.families.documents import lively
from tests.families.real_runs import assert_resumes_bit_for_bit, restored, settings_of, train
from tests.parallel.programs import on_eight_devices
from tests.runs.workdirs import begin_run
from tests.tiny import UAE, tiny_config
from unicom_jax.cli import main
from unicom_jax.core.module import iter_specs
from unicom_jax.exchange.export import export
from unicom_jax.exchange.written import Options
from unicom_jax.families.build import build_autoencoder, build_encoder, build_unified
from unicom_jax.inference.generator import Generator
from unicom_jax.interop.folders import module_in, read_model, write_model
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.models.qwen_vl import QwenVL
from unicom_jax.runs.checkpoint import restore_params

pytestmark = pytest.mark.slow
PICTURES = [picture(0, 32, 32), picture(1, 32, 32)]


@pytest.fixture(scope="module")
def given_and_run(tmp_path_factory):
    """A run that starts from a Qwen2.5-VL and an SD3, and their weights. Not to be changed."""
    base = tmp_path_factory.mktemp("uae")
    folders = {name: str(base / name) for name in ("qwen", "sd3")}
    config = tiny_config(
        **UAE,
        stages=("longcap", "g4u", "u4g"),
        **{
            f"{stage}__rewards__{name}": float(name == "pixels")
            for stage in ("g4u", "u4g")
            for name in ("cosine", "pixels")
        },
        evaluation__batch_size=2,
        unified__init_from=folders["qwen"],
        unified__uae__decoder__init_from=folders["sd3"],
    )
    given = {}

    def modules(config):
        model = build_unified(config)
        reader = QwenVL(model.images.vision, model.transformer, picture_token=3)
        drawer = model.images.decoder.transformer
        given["reader"], given["drawer"] = lively(reader, 1, 0.3), lively(drawer, 2, 0.2)
        write_model(base / "qwen", LAYOUTS["qwen_vl"], reader, given["reader"])
        write_model(base / "sd3", LAYOUTS["sd3"], drawer, given["drawer"])
        return {"autoencoder": (build_autoencoder(config), 0.2)}

    workdir = begin_run(config, base / "run", modules)
    train(workdir, "longcap")
    return given, workdir


def test_longcap_trains_connector_and_drawer_and_holds_the_reader(given_and_run):
    given, run = given_and_run
    model = build_unified(settings_of(run))
    trained = restored(run, "longcap", model)
    reader = {name: trained[name] for name in ("vision", "transformer")}
    chex.assert_trees_all_equal(reader, given["reader"], strict=True)
    drawer = trained["decoder"]["transformer"]
    np.testing.assert_array_equal(drawer["positions"], given["drawer"]["positions"])
    moved = np.abs(drawer["last"]["image"]["mlp"]["up"]["kernel"]
                   - given["drawer"]["last"]["image"]["mlp"]["up"]["kernel"])  # fmt: skip
    assert 0 < moved.max() < 0.05
    assert trained["decoder"].keys() == {"projector", "transformer"}
    assert {path[0] for path, _ in iter_specs(model.specs())} == {
        "transformer", "vision", "decoder",
    }  # fmt: skip


def test_its_drawer_is_exported_alone(given_and_run, tmp_path):
    run, layout = given_and_run[1], LAYOUTS["sd3"]
    folder = export(run, tmp_path / "sd3", Options(to="sd3"))
    trained = restored(run, "longcap", build_unified(settings_of(run)))
    found = read_model(folder, layout, module_in(folder, layout))
    chex.assert_trees_all_equal(found, trained["decoder"]["transformer"], strict=True)


def test_captioner_and_drawer_learn_in_turn(given_and_run, tmp_path):
    workdir = shutil.copytree(given_and_run[1], tmp_path / "run")
    model = build_unified(settings_of(workdir))
    before = restored(workdir, "longcap", model)
    for stage, learns, held in (
        ("g4u", "transformer", ("vision", "decoder")),
        ("u4g", "decoder", ("vision", "transformer")),
    ):
        train(workdir, stage)
        after = restored(workdir, stage, model)
        for part in held:
            chex.assert_trees_all_equal(after[part], before[part], strict=True)
        moved = jax.tree.map(lambda x, y: np.abs(x - y).max(), after[learns], before[learns])
        assert max(jax.tree.leaves(moved)) > 0
        before = after


def test_an_imported_encoder_that_is_no_part_of_the_model_compares_drawings(
    given_and_run, tmp_path
):
    base = given_and_run[1].parent
    config = tiny_config(**UAE, stages=("u4g",), u4g__steps=1)
    vision, kept = build_encoder(config).vision, build_autoencoder(config)
    write_model(tmp_path / "siglip", LAYOUTS["siglip"], vision, lively(vision))
    write_model(tmp_path / "vae", LAYOUTS["autoencoder"], kept, lively(kept, 3, 0.2))
    (tmp_path / "tiny.py").write_text(
        "from tests.tiny import UAE, tiny_config\n\ndef get_config():\n"
        "    return tiny_config(**UAE, stages=('u4g',), u4g__steps=1)\n"
    )
    workdir = tmp_path / "run"
    common = [f"--workdir={workdir}", f"--config={tmp_path / 'tiny.py'}"]
    folders = {
        "encoder": tmp_path / "siglip",
        "language": base / "qwen",
        "decoder": base / "sd3",
        "autoencoder": tmp_path / "vae",
    }
    flags = [f"--{name}={folder}" for name, folder in folders.items()]
    assert main(["import", *common, *flags]) == 0
    assert main(["train", *common]) == 0
    line = json.loads((workdir / "u4g/metrics.jsonl").read_text().splitlines()[0])
    assert -1 <= line["loss/reward/cosine"] == line["loss/reward"] <= 1
    held = read_model(tmp_path / "siglip", LAYOUTS["siglip"], vision)
    encoder = restore_params(
        workdir, "encoder", build_encoder(config).abstract(), parts=("vision",)
    )
    chex.assert_trees_all_equal(encoder["vision"], held, strict=True)


def test_eight_devices_train_as_one():
    case = {"stage": "longcap", "steps": 3, **UAE}
    cases = [{**case, "mesh": ""}, {**case, "mesh": "fsdp=2,context=2,tensor=2"}]
    printed = on_eight_devices("-m", "tests.parallel.eight", json.dumps(cases)).stdout
    one, eight = map(json.loads, printed.splitlines()[-2:])
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-4)
    assert eight["compilations"] == 1 and eight["moved"] == 0


def test_a_stopped_stage_resumes_bit_for_bit(given_and_run, tmp_path):
    assert_resumes_bit_for_bit(given_and_run[1], tmp_path / "run", "longcap")


def test_the_generator_captions_and_draws(given_and_run):
    generator, drawing = Generator.load(given_and_run[1]), {"steps": 2, "guidance": 3.0}
    first, again, other = (
        generator.draw(words, seed=0, **drawing)[0].image
        for words in ("a red circle", "a red circle", "two blue squares")
    )
    assert first.shape == (32, 32, 3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(generator.answer(PICTURES, "how many?", max_tokens=2)) == 2
