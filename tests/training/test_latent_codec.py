"""A codec that paints in the latents of a frozen autoencoder: training, workdir, generation."""

from __future__ import annotations

import shutil

import jax
import numpy as np
import optax
import pytest

from data_pipelines.build import load_or_train_tokenizer
from data_pipelines.segments import SOURCE, Image, Text
from tests.data.samples import picture, tokenizer
from tests.families.documents import lively
from tests.models.diffusers_folder import SMALL, write_folder
from tests.tiny import tiny_config
from tests.training.conftest import go
from tests.training.test_stages import pictures
from unicom_jax.config import ConfigError
from unicom_jax.families.build import build_encoder, build_unified
from unicom_jax.inference.generator import Generator
from unicom_jax.interop.tensors import WeightsError
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.runs import checkpoint as files
from unicom_jax.runs.autoencoder import adopt_autoencoder
from unicom_jax.training.stages.codec import codec_stage
from unicom_jax.training.step import Trainer

CHANNELS = (16 // SMALL.factor) ** 2 * SMALL.latent_channels  # of a token


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("autoencoder")
    write_folder(path)
    return path


def adopted(folder, workdir, **overrides):
    """A configuration that a run has filled in."""
    config = tiny_config(codec__autoencoder__path=str(folder), **overrides)
    adopt_autoencoder(config, workdir)
    return config


# ---- the stage ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_stage_learns_latents_with_a_perceptual_term_in_pixels(folder, tmp_path):
    before, after = losses_of(adopted(folder, tmp_path, codec__perceptual_weight=0.1), 30)
    named = {name for name in after if "/" not in name}
    assert named == {"flow", "feature", "perceptual"}
    assert after["flow"][0] < 0.8 * before["flow"][0]
    assert after["flow"][1] == 4 * 4  # tokens of four pictures


def losses_of(config, steps):
    """Loss terms before and after some steps of the stage on the same pictures."""
    stage = codec_stage("codec", config, lambda: iter(()))
    assert stage.module.pixel_decoder.channels == CHANNELS
    optimizer = optax.apply_if_finite(optax.adam(3e-3), 5)
    trainer = Trainer(stage, optimizer, lambda _: 3e-3, make_mesh(), 0)
    frozen = {
        "encoder": lively(build_encoder(config).vision),
        "autoencoder": lively(SMALL, scale=0.2),
    }
    state, step, look = trainer.init_state(), trainer.train_step(), trainer.eval_step()
    before = jax.device_get(look(state.params, frozen, pictures()))
    for _ in range(steps):
        state, metrics = step(state, frozen, pictures())
    assert int(metrics["skipped_steps"]) == 0
    assert "autoencoder" not in state.params
    return before, jax.device_get(look(state.params, frozen, pictures()))


FLUX = {
    "channels": CHANNELS,
    "heads": 2,
    "head_dim": 16,
    "rope_dims": (4, 6, 6),
    "context_dim": 16,
    "double_depth": 1,
    "single_depth": 1,
    "guidance_embeds": True,
}
SD3 = {"heads": 2, "head_dim": 16, "context_dim": 16, "depth": 2, "dual_depth": 1}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "sizes"), [("flux", FLUX), ("sd3", SD3)])
def test_a_released_kind_learns_latents_from_features_as_its_context(folder, tmp_path, kind, sizes):
    config = adopted(folder, tmp_path, codec__decoder__kind=kind)
    config.codec.decoder[kind].update(sizes)
    before, after = losses_of(config, 30)
    assert after["flow"][0] < 0.8 * before["flow"][0]


# ---- a whole run --------------------------------------------------------------------------


def keep(workdir, stage, params):
    """A checkpoint of a stage, as if it had been trained."""
    with files.open_manager(workdir / stage / "checkpoints") as manager:
        files.save(manager, 1, params, {"step": 1}, {"next_step": 1})
        manager.wait_until_finished()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir whose codec was trained over an autoencoder, and whose folder is gone since."""
    base = tmp_path_factory.mktemp("run")
    workdir = base / "workdir"
    write_folder(base / "given")
    overrides = {"codec__steps": 1, "data__padded_vocab_size": 512}
    overrides["codec__autoencoder__path"] = str(base / "given")
    keep(workdir, "encoder", lively(build_encoder(tiny_config(data__vocab_size=512))))
    (workdir / "tokenizer").mkdir()
    load_or_train_tokenizer(tiny_config(), None).save(workdir / "tokenizer")
    go(workdir, "codec", **overrides)
    keep(workdir, "pretrain", lively(build_unified(files.read_config(workdir))))
    shutil.rmtree(base / "given")
    return workdir, overrides


IMAGES = [picture(0, 32, 32), picture(1, 32, 32)]


def test_a_workdir_draws_edits_and_reconstructs_without_the_folder_it_was_given(run):
    generator = Generator.load(run[0])
    draw, edit = [Text("a red dot")], [Image(IMAGES[0], SOURCE), Text("paint it green")]
    painted = [*generator.reconstruct(IMAGES), *generator.paint([draw, edit], guidance=1.0)]
    assert [(image.shape, image.dtype) for image in painted] == [((32, 32, 3), np.uint8)] * 4
    assert not any(np.ptp(image.astype(int)) == 0 for image in painted)


def test_the_autoencoder_is_not_stored_with_the_codec_and_its_facts_are(run):
    facts = files.read_config(run[0])["codec"]["autoencoder"]["facts"]
    assert facts["sizes"]["widths"] == [8, 8] and facts["sizes"]["scale"] == 0.5
    assert facts["canvas"] == [2, 2]
    stored = {path.name for path in (run[0] / "autoencoder").iterdir()}
    assert stored == {"config.json", "diffusion_pytorch_model.safetensors"}


def test_a_run_continues_without_the_folder_it_was_given(run):
    assert "nothing to do" in go(run[0], "codec", **run[1])


@pytest.mark.parametrize(("damage", "words"), [("gone", "is missing"), ("cut", "is damaged")])
def test_a_copy_that_cannot_be_read_is_named_with_the_fix(run, tmp_path, damage, words):
    workdir = shutil.copytree(run[0], tmp_path / "run")
    weights = workdir / "autoencoder" / "diffusion_pytorch_model.safetensors"
    if damage == "gone":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(WeightsError, match=f"{weights} {words}.* copy it again from ") as error:
        Generator.load(workdir)
    assert "\n" not in str(error.value)


# ---- aspect buckets -----------------------------------------------------------------------


@pytest.mark.slow
def test_an_untrained_model_takes_pictures_of_several_shapes_in_one_batch(folder, tmp_path):
    config = adopted(
        folder,
        tmp_path,
        data__policy="bucket",
        data__bucket_step=16,
        encoder__naflex=True,
    )
    generator = Generator.untrained(config, tokenizer())
    painted = generator.reconstruct([picture(0, 16, 64), picture(1, 32, 32), picture(2, 64, 16)])
    assert [image.shape[:2] for image in painted] == [(16, 64), (32, 32), (64, 16)]
    assert generator.draw(["a red dot"], size=(16, 48), guidance=1.0)[0].image.shape == (16, 48, 3)


# ---- what does not fit --------------------------------------------------------------------


def test_naflex_pictures_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"data\.policy=naflex allows any; set --config"):
        adopted(folder, tmp_path, data__policy="naflex")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"codec\.autoencoder\.path=.*there is no config\.json"):
        adopted(tmp_path / "none", tmp_path / "run")


def test_a_refused_autoencoder_is_not_copied(folder, tmp_path):
    with pytest.raises(ValueError, match=r"data\.patch=15 is not a multiple of 2"):
        adopted(folder, tmp_path, data__patch=15, data__image_size=30)
    assert not (tmp_path / "autoencoder").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "AutoencoderDC"}, "_class_name is 'AutoencoderDC'"),
        ({"act_fn": "relu"}, "act_fn is 'relu'"),
        ({"in_channels": 1}, "in_channels is 1"),
        ({"latents_mean": [0.0]}, "latents_mean is"),
        ({"use_post_quant_conv": True}, "use_post_quant_conv is True"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "down_block_types is"),
    ],
)
def test_an_autoencoder_of_another_kind_is_named(tmp_path, change, words):
    write_folder(tmp_path / "given", **change)
    with pytest.raises(ConfigError, match=words):
        adopted(tmp_path / "given", tmp_path / "run")
