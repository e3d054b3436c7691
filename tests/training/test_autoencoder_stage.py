"""The stage that trains a KL autoencoder: its losses, a resumed run, an exported one."""

from __future__ import annotations

import io
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from data_pipelines.images import patchify
from data_pipelines.loading.pictures import PictureBatch
from tests.data.samples import picture
from tests.families.documents import lively
from tests.runs.workdirs import write_run
from tests.tiny import tiny_config
from tests.training.conftest import config, go
from unicom_jax.config import ConfigError
from unicom_jax.evaluation.command import run_evaluate
from unicom_jax.exchange.export import export
from unicom_jax.exchange.written import Options
from unicom_jax.families.build import (
    build_autoencoder,
    build_encoder,
    build_space,
    build_trained_autoencoder,
)
from unicom_jax.models.autoencoder import AutoencoderKLFlux2
from unicom_jax.models.extent import Extent
from unicom_jax.models.paint_space import pack
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.planning.program import make_program
from unicom_jax.runs import checkpoint as files
from unicom_jax.runs.autoencoder import adopt_autoencoder, load_autoencoder, load_trained
from unicom_jax.training.stages import LOSSES
from unicom_jax.training.stages.autoencoder import noisy_latents
from unicom_jax.training.stages.codec import add_latent_noise

# Everything that the stage may have.
WHOLE = {
    "autoencoder__perceptual_weight": 0.5,
    "autoencoder__discriminator__weight": 0.5,
    "autoencoder__discriminator__start": 1,
    "autoencoder__kl_weight": 1e-3,
}
PATCH = 16


def stage_of(**overrides):
    return LOSSES["autoencoder"]("autoencoder", tiny_config(**overrides), lambda: iter(()))


def pictures(count=2, sides=((32, 32),)) -> PictureBatch:
    patches, grids = np.zeros((count, 4, 3 * PATCH**2), np.uint8), np.zeros((count, 2), np.int32)
    for row in range(count):
        height, width = sides[row % len(sides)]
        cut = patchify(picture(row, height, width), PATCH)
        patches[row, : len(cut)] = cut
        grids[row] = height // PATCH, width // PATCH
    return PictureBatch(patches, grids, np.zeros((count, 16), np.int32), np.ones(count, np.int32))


def keys(count=2):
    return jax.random.split(jax.random.key(0), count)


# ---- the losses ---------------------------------------------------------------------------


@pytest.mark.parametrize("most", [0.0, 0.5])
def test_terms_are_absolute_error_and_divergence_a_colour_value(most):
    """With noise on latents, of the picture that is painted from noisy ones."""
    stage, batch = stage_of(autoencoder__latent_noise=most), pictures()
    assert stage.rows_are_independent == (most == 0)
    module, params = stage.module, lively(stage.module, scale=0.2)
    terms = jax.jit(stage.loss)(params, {}, batch, keys())
    assert terms.keys() == stage.weights.keys() == {"l1", "kl"}

    images = np.stack([picture(row, 32, 32) for row in range(2)]) / np.float32(127.5) - 1
    mean, log_variance = jax.jit(module.moments)(params, images)
    noise = np.stack([jax.random.normal(key, mean.shape[1:]) for key in keys()])
    latents = mean + np.exp(log_variance / 2) * noise
    tokens = latents.reshape(2, -1, latents.shape[-1])
    noisy = add_latent_noise(tokens, jnp.ones(tokens.shape[:2]), keys(), most)
    rebuilt = jax.jit(module.decode)(params, noisy.reshape(latents.shape))
    values = images.size
    expected = {
        "l1": np.abs(rebuilt - images).sum(),
        "kl": 0.5 * (mean**2 + np.exp(log_variance) - 1 - log_variance).sum(),
    }
    for name, (total, count) in terms.items():
        assert count == values
        np.testing.assert_allclose(total, expected[name], rtol=1e-4)


def test_noise_on_latents_is_measured_within_pictures_alone():
    grids, canvas = jnp.array([[1, 2], [2, 2]]), (2, 2)
    latents = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    extent = Extent(grids, canvas)
    beyond = jnp.where(extent.mask(latents), latents, 1e3)
    noise = noisy_latents(latents, extent, keys(), 0.5) - latents
    same = noisy_latents(beyond, extent, keys(), 0.5) - beyond
    inside = np.broadcast_to(extent.mask(latents), latents.shape)
    np.testing.assert_allclose(same[inside], noise[inside], rtol=1e-5, atol=1e-6)
    assert np.std(noise[inside]) > 0.01


@pytest.mark.slow
def test_a_picture_smaller_than_its_canvas_has_the_losses_it_has_alone():
    """Padding counts for nothing, in the discriminator neither."""
    policy = {"data__policy": "bucket", "data__bucket_step": 16, "encoder__naflex": True}
    stage = stage_of(**policy, **WHOLE, autoencoder__discriminator__adaptive=False)
    params = lively(stage.module, scale=0.2)
    frozen = {"encoder": lively(build_encoder(tiny_config(**policy)).vision)}
    loss = jax.jit(stage.loss)
    batch = pictures(2, sides=((16, 48), (32, 32)))
    both = loss(params, frozen, batch, keys())
    parts = [
        loss(params, frozen, PictureBatch(*(x[one] for x in batch)), keys()[one])
        for one in (slice(0, 1), slice(1, 2))
    ]
    behind = np.arange(4) >= np.prod(batch.grids, axis=1)[:, None]
    noisy = batch._replace(patches=np.where(behind[..., None], 9, batch.patches).astype(np.uint8))
    for found in (jax.tree.map(jnp.add, *parts), loss(params, frozen, noisy, keys())):
        for name, (total, count) in both.items():
            np.testing.assert_allclose(found[name][0], total, rtol=1e-4, err_msg=name)
            assert found[name][1] == count, name


@pytest.fixture(scope="module")
def game():
    """The stage with a discriminator, random weights and its gradients, term by term."""
    stage = stage_of(
        autoencoder__discriminator__weight=0.5,
        autoencoder__discriminator__adaptive=False,
        autoencoder__discriminator__start=1,
    )
    params, batch = lively(stage.module, scale=0.2), pictures()

    def means(params):
        terms = stage.loss(params, {}, batch, keys())
        return {name: total / count for name, (total, count) in terms.items()}

    return stage, params, batch, jax.jit(jax.jacrev(means))(params), jax.jit(means)(params)


def moved(tree) -> bool:
    return any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(tree))


def test_each_player_learns_from_its_own_loss_alone(game):
    _, _, _, gradients, _ = game
    own = {name: moved(tree["discriminator"]) for name, tree in gradients.items()}
    assert own == {"l1": False, "kl": False, "adversarial": False, "discriminator": True}
    for half in ("encoder", "decoder"):
        assert moved(gradients["adversarial"][half]) and not moved(gradients["discriminator"][half])


def test_the_adaptive_weight_balances_gradients_at_the_last_convolution(game):
    plain, params, batch, gradients, means = game
    stage = stage_of(autoencoder__discriminator__weight=0.5)
    assert plain.rows_are_independent and not stage.rows_are_independent
    sizes = {
        name: float(jnp.linalg.norm(gradients[name]["decoder"]["conv_out"]["kernel"]))
        for name in ("l1", "adversarial")
    }
    share = sizes["l1"] / (sizes["adversarial"] + 1e-4)
    terms = jax.jit(stage.loss)(params, {}, batch, keys())
    np.testing.assert_allclose(terms["adversarial_share"][0], share, rtol=1e-3)
    total, count = terms["adversarial"]
    np.testing.assert_allclose(total / count, share * means["adversarial"], rtol=1e-3)


def test_the_discriminator_waits_for_its_start(game):
    stage = game[0]
    assert stage.weights_at(0) == {"l1": 1.0, "kl": 1e-6, "adversarial": 0, "discriminator": 0}
    assert stage.weights_at(1) == {"l1": 1.0, "kl": 1e-6, "adversarial": 0.5, "discriminator": 1}


# ---- a run --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with a random encoder and an autoencoder that was trained on all losses."""
    workdir = write_run(tmp_path_factory.mktemp("trained") / "run")
    for later in ("codec", "pretrain"):
        shutil.rmtree(workdir / later)
    go(workdir, "autoencoder", evaluation__pictures=4, **WHOLE)
    return workdir


def test_a_resumed_run_ends_as_one_that_was_never_stopped(trained, tmp_path):
    resumed = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(resumed / "autoencoder" / "checkpoints" / "4")
    (resumed / "autoencoder" / "stage.json").unlink()
    printed = go(resumed, "autoencoder", **WHOLE)
    assert "autoencoder: resumes from the checkpoint of step 2" in printed
    module = build_trained_autoencoder(config(**WHOLE))
    once, twice = (
        files.restore_params(one, "autoencoder", module.abstract()) for one in (trained, resumed)
    )
    assert "discriminator" in once
    chex.assert_trees_all_equal(once, twice)
    facts = json.loads((resumed / "autoencoder" / "stage.json").read_text())
    assert facts["compilations"] == 1


def test_statistics_are_those_of_the_packed_latents_that_it_was_trained_on(trained):
    facts = json.loads((trained / "autoencoder" / "stage.json").read_text())
    statistics = load_trained(files.read_config(trained), trained)["statistics"]
    assert statistics["mean"].shape == (128,) and moved(statistics["mean"])
    np.testing.assert_allclose(facts["latent_std"], np.sqrt(statistics["variance"]), rtol=1e-6)


def test_an_exported_autoencoder_is_one_of_diffusers_and_of_another_run(trained, tmp_path):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    folder = export(trained, tmp_path / "out", Options(to="autoencoder"))
    twin = diffusers.AutoencoderKLFlux2.from_pretrained(folder)
    stored = files.read_config(trained)
    module, params = build_autoencoder(stored), load_trained(stored, trained)
    assert isinstance(module, AutoencoderKLFlux2) and module.side == 8

    images = np.stack([picture(0, 32, 32)]) / np.float32(127.5) - 1
    given = torch.tensor(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        mean = twin.encode(given).latent_dist.mode()
        normal = twin.bn(torch.nn.functional.pixel_unshuffle(mean, 8)).flatten(2).transpose(1, 2)
        rebuilt = twin.decode(mean).sample.permute(0, 2, 3, 1)
    latents = module.encode(params, images)
    ours = module.normalise(params, pack(latents, module.side))
    np.testing.assert_allclose(ours, normal, atol=1e-5 * float(normal.abs().max()))
    np.testing.assert_allclose(module.decode(params, latents), rebuilt, atol=1e-5)

    other = tiny_config(codec__autoencoder__path=str(folder))
    adopt_autoencoder(other, tmp_path / "other")
    assert build_space(other).autoencoder == module
    found = load_autoencoder(other, tmp_path / "other")["autoencoder"]
    chex.assert_trees_all_equal(found, params)
    with pytest.raises(ConfigError, match="trains an autoencoder of its own; export it"):
        adopt_autoencoder(other, trained)


def test_without_a_model_the_autoencoder_is_scored_alone(trained, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    printed = Console(file=io.StringIO(), width=200)
    flat = run_evaluate(workdir, printed)
    assert "only the autoencoder is scored" in printed.file.getvalue()
    suites = {name.partition("/")[0] for name in flat}
    assert suites == {"reconstruction"} and flat["reconstruction/psnr.n"] == 4
    assert np.isfinite([flat["reconstruction/kid"], flat["reconstruction/psnr.untrained"]]).all()
    with pytest.raises(ValueError, match="--step=2 chooses a checkpoint of the unified model"):
        run_evaluate(workdir, printed, step="2")


def test_its_step_is_planned_with_the_encoder_only_where_it_compares_features():
    mesh = make_mesh("fsdp=-1")
    assert make_program(tiny_config(), "autoencoder", mesh).frozen_specs.keys() == set()
    program = make_program(tiny_config(**WHOLE), "autoencoder", mesh)
    assert program.frozen_specs.keys() == {"encoder"} and program.tokens == 16
