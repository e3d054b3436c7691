"""A family over a KL autoencoder is one file and rows of tables: all commands work with it."""

from __future__ import annotations

import io
import json
import shutil

import jax
import numpy as np
import pytest
from rich.console import Console

from data_pipelines.segments import UNDERSTOOD, Image, Text
from tests.data.samples import picture, tokenizer
from tests.families import painter
from tests.families.documents import lively
from tests.families.real_runs import assert_resumes_bit_for_bit, restored, settings_of, train
from tests.inference.eight import results
from tests.parallel.programs import on_eight_devices
from tests.runs.workdirs import write_run
from tests.tiny import tiny_config
from unicom_jax.config import ConfigError, from_json
from unicom_jax.config.check import check_settings
from unicom_jax.core.pixels import to_unit
from unicom_jax.evaluation.command import run_evaluate
from unicom_jax.exchange.export import export
from unicom_jax.exchange.written import Options
from unicom_jax.families.build import build_encoder, build_unified
from unicom_jax.inference.arrays import to_patches, to_pictures
from unicom_jax.inference.generator import Generator
from unicom_jax.interop.folders import write_model
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.parallel.plan.topology import parse_topology
from unicom_jax.planning.sampling import plan_sampling
from unicom_jax.runs import checkpoint, weights
from unicom_jax.runs.configuration import open_run
from unicom_jax.runs.imported import import_stage
from unicom_jax.runs.items import CheckpointError
from unicom_jax.runs.origin import take_weights
from unicom_jax.runs.released import sources_of

PICTURES = [picture(0, 64, 64), picture(1, 64, 64)]
FEW = {"pictures": 3, "prompts": 1, "questions": 1, "edits": 1, "shown": 1}


@pytest.fixture(scope="module", autouse=True)
def family():
    with pytest.MonkeyPatch.context() as patch:
        painter.register(patch)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Trained by the real loop over an encoder and an autoencoder. Not to be changed."""
    place = tmp_path_factory.mktemp("painter") / "run"
    workdir = painter.begin(place, "encoder", "kl", evaluation={**tiny_config().evaluation, **FEW})
    printed = train(workdir)
    assert "pretrain: starts with vision from the weights of encoder\n" in printed
    return workdir


@pytest.fixture(scope="module")
def generator(run):
    return Generator.load(run)


# ---- training ---------------------------------------------------------------------------------


def test_the_tower_starts_from_the_encoder_and_is_trained_inside_the_loss(run):
    config = settings_of(run)
    trained = restored(run, "pretrain", build_unified(config))
    assert set(trained) == {"transformer", "vision", "eye", "sketch", "time", "head"}
    given = restored(run, "encoder", build_encoder(config))["vision"]
    apart = jax.tree.map(lambda x, y: np.abs(x - y).max(), trained["vision"], given)
    assert 0 < max(jax.tree.leaves(apart)) < 0.02  # four steps away
    facts = json.loads((run / "pretrain/stage.json").read_text(encoding="utf-8"))
    assert facts["compilations"] == 1


def test_a_stopped_stage_resumes_bit_for_bit(run, tmp_path):
    assert_resumes_bit_for_bit(run, tmp_path / "run")


def test_the_tower_starts_from_the_encoder_beside_a_language_model_that_was_imported(tmp_path):
    workdir, given = painter.begin(tmp_path / "run", "encoder", "kl"), tmp_path / "language"
    config = settings_of(workdir)
    language = build_unified(config).transformer
    write_model(given, LAYOUTS["qwen"], language, lively(language))
    printed = Console(file=io.StringIO(), width=1000)
    asked = from_json({**config.to_dict(), "unified": {**config.unified, "init_from": str(given)}})
    import_stage(asked, "pretrain", sources_of(asked, "pretrain"), workdir, printed)
    assert "vision" not in checkpoint.stored_keys(workdir, "pretrain")
    printed = train(workdir)
    assert "pretrain: starts from the weights that were imported\n" in printed
    assert "pretrain: starts with vision from the weights of encoder\n" in printed


# ---- use --------------------------------------------------------------------------------------


def test_the_generator_draws_edits_and_answers(generator):
    drawing = {"steps": 2, "guidance": 3.0}
    first, again, other = (
        generator.draw("a red circle", seed=seed, **drawing)[0].image for seed in (0, 0, 1)
    )
    assert first.shape == (64, 64, 3)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert generator.edit(PICTURES, "paint it green", **drawing)[1].shape == (64, 64, 3)
    assert len(generator.answer(PICTURES, "how many?", max_tokens=2)) == 2
    talk = [Image(PICTURES[0], UNDERSTOOD), Text("draw it")]
    assert isinstance(generator.respond(talk, max_images=1, max_tokens=2), list)


def test_a_picture_is_reconstructed_by_the_codec_alone(generator):
    codec, params = generator.models.codec, generator.params["codec"]
    patches, grids = to_patches(PICTURES, generator.sequence)
    latents = codec.encode(params, to_unit(patches), grids)
    wanted = to_pictures(codec.decode(params, latents, grids), grids, generator.sequence.patch)
    for copy, one in zip(generator.reconstruct(PICTURES), wanted, strict=True):
        assert np.ptp(copy) > 0
        np.testing.assert_allclose(copy.astype(int), one.astype(int), atol=1)


@pytest.mark.slow
def test_pictures_of_several_shapes_are_reconstructed_each_as_if_alone(tmp_path):
    config = tiny_config(**{**painter.CHOSEN, "data__policy": "bucket", "data__bucket_step": 32})
    generator = Generator.untrained(config, tokenizer())
    shapes = [(32, 128), (64, 64), (128, 32)]
    copies = generator.reconstruct([picture(seed, *shape) for seed, shape in enumerate(shapes)])
    assert [copy.shape[:2] for copy in copies] == shapes
    codec, params, patch = generator.models.codec, generator.params["codec"], 16
    for seed, (shape, copy) in enumerate(zip(shapes, copies, strict=True)):
        rows, cols = shape[0] // patch, shape[1] // patch
        alone = codec.on(codec.canvas.of_grid(rows, cols))
        patches, grids = to_patches([picture(seed, *shape)], generator.sequence)
        tokens = alone.encode(params, to_unit(patches[:, : rows * cols]), grids)
        (wanted,) = to_pictures(alone.decode(params, tokens, grids), grids, patch)
        assert np.ptp(copy) > 0
        np.testing.assert_allclose(copy.astype(int), wanted.astype(int), atol=1)


def test_it_is_evaluated_and_measured_by_the_encoder(run, tmp_path):
    workdir, printed = shutil.copytree(run, tmp_path / "run"), io.StringIO()
    flat = run_evaluate(workdir, Console(file=printed, width=200), baseline=False)
    assert {"reconstruction/kid", "reconstruction/psnr", "generation/overall"} <= flat.keys()
    assert "left out" not in printed.getvalue()


def test_a_run_without_an_encoder_is_evaluated_but_for_what_it_measures(run, tmp_path):
    workdir, printed = shutil.copytree(run, tmp_path / "run"), io.StringIO()
    shutil.rmtree(workdir / "encoder")
    settings = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    settings["evaluation"] |= {"prompts": 0, "questions": 0, "edits": 0}  # of other suites
    (workdir / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    flat = run_evaluate(workdir, Console(file=printed, width=200), baseline=False)
    assert "reconstruction/kid" not in flat and "reconstruction/psnr" in flat
    assert "no encoder was trained or imported; left out: reconstruction/kid\n" in (
        printed.getvalue()
    )
    with pytest.raises(ValueError, match="no encoder that could measure pictures; train one"):
        Generator.load(workdir).features(PICTURES)


def test_its_sampling_is_planned(run):
    draw, write = plan_sampling(settings_of(run), parse_topology("cpu:1"))
    held = jax.tree.leaves(jax.eval_shape(lambda: weights.untrained(settings_of(run), 0)))
    assert draw.weights == write.weights == sum(leaf.size * 4 for leaf in held)
    assert draw.turns["painting"] == 1  # decoded at once


# ---- eight devices ----------------------------------------------------------------------------


@pytest.mark.slow
def test_eight_devices_train_and_draw_as_one(run):
    printed = on_eight_devices("-m", "tests.families.eight", str(run)).stdout.splitlines()
    one, eight = map(json.loads, printed[-2:])
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=1e-4)
    assert eight["compilations"] == 1 and eight["moved"] == 0
    alone = results(Generator.load(run))
    assert eight["words"] == alone["words"]
    for name in ("pictures", "reconstructed"):  # up to the rounding of a byte
        assert np.abs(np.array(eight[name]) - alone[name]).max() <= 1


# ---- what does not fit ------------------------------------------------------------------------


def refused(kind, words, run, *arguments):
    with pytest.raises(kind, match=words) as error:
        run(*arguments)
    assert "\n" not in str(error.value)


def test_a_codec_without_weights_is_named(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(workdir / "kl")
    refused(
        CheckpointError, "no checkpoint under .*kl.* train` for stage 'kl'", Generator.load, workdir
    )


def test_a_part_to_start_from_that_was_not_trained_is_named(tmp_path):
    workdir = painter.begin(tmp_path / "run", "kl")
    refused(CheckpointError, "builds on encoder, and .* has no checkpoint of it", train, workdir)


def test_a_run_of_another_family_is_refused(run, tmp_path):
    other = write_run(tmp_path / "other")
    change = ["--config.unified.pathway=painter"]
    refused(
        ConfigError,
        "unified.pathway='transfusion', now it is 'painter'",
        open_run,
        other,
        None,
        change,
    )
    config = tiny_config(
        **{**painter.CHOSEN, "stages": ("sft",)}, sft__init_from=f"{other}:pretrain"
    )
    refused(
        ConfigError, "sft.init_from=.* has no weights of the part kl", take_weights,
        config, tmp_path / "new", Console(file=io.StringIO()),
    )  # fmt: skip
    own = {"unified__pathway": "transfusion", "unified__fold": 1, "stages": ("sft",)}
    config = tiny_config(**{**painter.CHOSEN, **own}, sft__init_from=f"{run}:pretrain")
    config.data.vocab_size = settings_of(run).data.vocab_size
    refused(
        ConfigError, "has no weights of the part codec", take_weights,
        config, tmp_path / "new", Console(file=io.StringIO()),
    )  # fmt: skip


def test_pytorch_has_no_such_model(run, tmp_path):
    refused(
        ConfigError, "unified.pathway=painter has no model in PyTorch yet", export,
        run, tmp_path / "out", Options("pytorch"),
    )  # fmt: skip
    assert (export(run, tmp_path / "qwen", Options("qwen2")) / "model.safetensors").is_file()


def test_sides_and_settings_that_do_not_fit_are_named(generator):
    with pytest.raises(ValueError, match="size .64, 48.: this model was trained at .64, 64. only"):
        generator.draw("a dot", size=(64, 48))
    config = tiny_config(**{**painter.CHOSEN, "data__image_size": 48})
    refused(
        ConfigError, "data.image_size=48 is not a multiple", check_settings, config, ("pretrain",)
    )
    pooled = tiny_config(**painter.CHOSEN, codec__pool=2, codec__compressor="pool")
    refused(ValueError, "codec.pool=2: latents .* set codec.pool=1", build_unified, pooled)
    free = tiny_config(**painter.CHOSEN, data__policy="naflex")
    refused(ValueError, "data.policy=naflex allows any", build_unified, free)
    with pytest.raises(ValueError, match="codec_steps is 3, but this model's codec decodes"):
        generator.draw("a dot", codec_steps=3)
