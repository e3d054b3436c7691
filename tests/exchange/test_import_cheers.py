"""`unicom import --cheers`: a checkpoint in the layout of Cheers' release becomes a workdir."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from tests.models.torch_weights import assert_close
from unicom_jax.cli import main
from unicom_jax.config import ConfigError
from unicom_jax.config.files import load_config
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.flow import interpolate
from unicom_jax.families.build import build_autoencoder, build_unified
from unicom_jax.families.images import Noised
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.interop.mapping import places
from unicom_jax.interop.transfer import store_weights
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.runs.checkpoint import read_config, restore_params
from unicom_jax.runs.imported import check_stages, import_frozen_parts
from unicom_jax.runs.released import sources_of
from unicom_jax.runs.stages import Occurrence
from unicom_jax.runs.workdir import stage_steps
from unicom_jax.training.run import _initial_params

torch = pytest.importorskip("torch")
from tests.exchange import cheers_released as released  # noqa: E402

FILE = Path(__file__).resolve().parents[2] / "experiments" / "cheers_1_5b.py"
LAYOUT = LAYOUTS["cheers"]
# Of the published config.json what differs from the defaults of its configuration file.
PUBLISHED = {
    "model_type": "umm",
    "vae_encoder_config": {"resolution": 512},
    "vae_decoder_config": {"resolution": 512},
    "vision_representation_config": {
        "hidden_size": 1152,
        "image_size": 512,
        "intermediate_size": 4304,
        "num_attention_heads": 16,
        "num_hidden_layers": 27,
    },
    "text_config": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "vocab_size": 151_936,
    },
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folder and torch model of a small checkpoint, and a configuration of its sizes."""
    folder = tmp_path_factory.mktemp("cheers")
    model = released.write(folder / "given")
    made = f"return tiny_config(**{released.OVERRIDES!r})"
    text = f"from tests.tiny import tiny_config\n\n\ndef get_config():\n    {made}\n"
    (folder / "small.py").write_text(text)
    return folder, model


def import_from(folder: Path, workdir: Path, *flags: str, given: str = "given") -> int:
    config = f"--config={folder / 'small.py'}"
    return main(["import", config, f"--workdir={workdir}", f"--cheers={folder / given}", *flags])


# ---- the released sizes -----------------------------------------------------------------------


def test_the_released_checkpoint_has_1321_tensors_of_2571_million_weights():
    model = LAYOUT.module_of(PUBLISHED, Path("config.json"))
    found = places(LAYOUT.table(model), model.specs())
    counters = [n for n in LAYOUT.spare(model) if n.endswith("num_batches_tracked")]
    assert len(found) + len(LAYOUT.twins(model)) + len(counters) == 1321
    assert round(model.param_count() / 1e6, 1) == 2571.3
    sizes = {name: place.shape for name, place in found.items()}
    stored = sum(np.prod(shape) for shape in sizes.values())
    stored += np.prod(sizes["model.language_model.embed_tokens.weight"])  # the head beside it
    assert 2 * (stored + len(counters)) == 5_609_423_890  # the total of its index, in bfloat16


def test_its_sizes_are_those_of_the_experiment_and_its_options_are_asked_for(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    config = load_config(FILE)
    config.unified.init_from = config.autoencoder.init_from = str(tmp_path)
    with pytest.raises(ConfigError, match="set --config.unified.cheers.positions=released"):
        sources_of(config, "align")
    config.unified.cheers.positions = "released"
    (whole,), (own,) = sources_of(config, "align"), sources_of(config, "autoencoder")
    count = build_unified(config).param_count(), build_autoencoder(config).param_count()
    assert (whole.module.param_count(), own.module.param_count()) == count
    assert LAYOUT.module_of(LAYOUT.describe(LAYOUT.module_of(PUBLISHED, FILE)), FILE)


# ---- a small one ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imported(checkpoint, tmp_path_factory):
    """Configuration, modules and weights of a run that imported the small checkpoint."""
    folder, _ = checkpoint
    workdir = tmp_path_factory.mktemp("imported") / "run"
    assert import_from(folder, workdir) == 0
    assert stage_steps(workdir, "sft") == stage_steps(workdir, "autoencoder") == [0]
    config = read_config(workdir)
    model, own = build_unified(config), build_autoencoder(config)
    weights = {
        "unified": restore_params(workdir, "sft", model.abstract()),
        "autoencoder": restore_params(workdir, "autoencoder", own.abstract()),
    }
    return workdir, model, own, weights


def test_an_imported_model_computes_what_plain_torch_does(checkpoint, imported):
    _, theirs = checkpoint
    _, model, _, weights = imported
    rng, tokens = np.random.default_rng(0), released.SIDE**2
    side = released.PATCH * released.SIDE
    pixels = rng.random((2, side, side, 3), np.float32)
    noise = rng.standard_normal((2, tokens, 4 * released.CHANNELS)).astype(np.float32)
    time, words = np.float32([0.2, 0.8]), rng.integers(0, released.VOCABULARY, (2, 5))
    count = 5 + tokens // 4
    index = np.broadcast_to(np.arange(count, dtype=np.int32), (2, count))
    zeros = np.zeros_like(index)
    mask = MaskIntervals(zeros, np.where(index < 5, index + 1, count), zeros, zeros)
    grids = np.full((2, 1, 2), released.SIDE, np.int32)

    @jax.jit
    def forward(weights):
        params, images = weights["unified"], model.images
        patches = pixels.reshape(2, released.SIDE, released.PATCH, released.SIDE, -1, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(2, tokens, -1)
        clean = images.codec.encode(weights["autoencoder"], 2 * patches - 1, grids[:, 0])
        times, clean_, noise_ = jnp.array(time)[:, None], clean[:, None], noise[:, None]
        noisy = interpolate(clean_, noise_, times)
        noised = Noised(noisy, times, grids, clean_, noise_)
        slots, embedded = images.drawn(params, noised)
        table = params["transformer"]["embedding"]["table"]
        hidden = jnp.concatenate([table[words], slots[:, 0]], 1)
        places = np.stack([index, index], -1)
        hidden, _ = model.transformer(params["transformer"], hidden, places, mask)
        speed = images.velocity(params, hidden[:, None, 5:], noised, embedded)
        return clean, model.logits(params, hidden[:, :5]), speed[:, 0]

    clean, logits, speed = forward(weights)
    with torch.no_grad():
        pictures = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        given = map(torch.from_numpy, (noise, time, words))
        latents, scores, velocity = theirs(pictures, *given)
    assert_close(clean, latents, 1e-4, "latents")
    assert_close(logits[..., : released.VOCABULARY], scores, 1e-4, "logits")
    assert_close(speed, velocity, 1e-4, "velocity")


def test_what_was_read_is_written_back_bit_for_bit(checkpoint, imported, tmp_path):
    folder, _ = checkpoint
    _, _, _, weights = imported
    module = LAYOUT.module_of(released.CONFIG, folder)
    weights = jax.tree.map(lambda leaf: leaf, weights)
    rows = weights["unified"]["transformer"]["embedding"]
    rows["table"] = rows["table"][: released.VOCABULARY]  # the run has more
    store_weights(tmp_path, LAYOUT.table(module), module.specs(), weights)
    given, back = load_file(folder / "given" / "model.safetensors"), {}
    for file in tmp_path.glob("*.safetensors"):
        back |= load_file(file)
    left = {"lm_head.weight", *(n for n in given if n.endswith("num_batches_tracked"))}
    assert given.keys() - back.keys() == left and not back.keys() - given.keys()
    for name, value in back.items():
        np.testing.assert_array_equal(value, given[name], err_msg=name)


def test_training_starts_from_the_folder_that_a_configuration_names(checkpoint, imported, tmp_path):
    folder, _ = checkpoint
    config = load_config(folder / "small.py")
    config.unified.init_from = config.autoencoder.init_from = str(folder / "given")
    check_stages(config)  # no stage trains the autoencoder, and it comes whole
    console = Console(quiet=True)
    import_frozen_parts(config, tmp_path, console)
    assert stage_steps(tmp_path, "autoencoder") == [0]
    mesh = make_mesh("data=1", jax.devices()[:1])
    found = _initial_params(Occurrence("sft"), config, tmp_path, mesh, console)
    expected = imported[-1]["unified"]
    for part in ("decoder", "vision", "projector", "head"):
        chex.assert_trees_all_equal(found[part], expected[part])


# ---- what cannot be imported ------------------------------------------------------------------

STATISTICS = "model.vae_model.bn.running_var"


def without(name):
    return lambda tensors: tensors.pop(name)


def with_one_more(tensors):
    tensors["model.hi_gate.gate.4.weight"] = np.zeros(3, np.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("model.hi_gate.gate.0.weight"), "lacks model.hi_gate.gate.0.weight; it is"),
        (without("model.vae_model.encoder.conv_in.bias"), "lacks model.vae_model.encoder.conv_in"),
        (
            without(STATISTICS),
            f"lacks {STATISTICS}; it is incomplete or belongs to another model (the stat",
        ),
        (with_one_more, "model.hi_gate.gate.4.weight has no place in the model"),
    ],
)
def test_missing_and_extra_tensors_are_named(checkpoint, tmp_path, capsys, change, message):
    folder, _ = checkpoint
    shutil.copytree(folder, tmp_path / "copy")
    file = tmp_path / "copy" / "given" / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    assert import_from(tmp_path / "copy", tmp_path / "run", "--dry-run") == 1
    line = capsys.readouterr().err.strip()
    assert message in line and "\n" not in line and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("section", "changes", "message"),
    [
        ("", {"model_type": "unicom"}, "model_type is 'unicom', a checkpoint of Cheers has 'umm'"),
        (
            "vision_representation_config",
            {"image_size": 20},
            "image_size is 20; the sides of pictures have to be multiples of 8",
        ),
        ("vae_decoder_config", {"ch_mult": [1, 1]}, "belong to different autoencoders"),
        ("text_config", {"num_hidden_layers": 3}, "set --config.unified.transformer.depth=3"),
        ("vision_representation_config", {"image_size": 32}, "set --config.data.image_size=32"),
        ("text_config", {"vocab_size": 999}, "set --config.data.padded_vocab_size=999"),
        ("text_config", {"rope_scaling": {"factor": 2.0}}, "rope_scaling is"),
    ],
)
def test_another_model_is_refused_in_one_line(
    checkpoint, tmp_path, capsys, section, changes, message
):
    folder, _ = checkpoint
    (tmp_path / "given").mkdir()
    shutil.copy(folder / "small.py", tmp_path)
    described = json.loads(json.dumps(released.CONFIG))
    (described[section] if section else described).update(changes)
    (tmp_path / "given" / "config.json").write_text(json.dumps(described))
    assert import_from(tmp_path, tmp_path / "run", "--dry-run") == 1
    line = capsys.readouterr().err.strip()
    assert message in line and "\n" not in line


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.unified.cheers.positions=plain"], "set --config.unified.cheers.positions=rel"),
        (["--config.unified.cheers.pixel_range=signed"], "set --config.unified.cheers.pixel_ran"),
        (["--config.unified.cheers.norm=False"], "set --config.unified.cheers.norm=True"),
        (["--config.data.image_size=32"], "set --config.data.image_size=16"),
        (
            ["--config.unified.pathway=transfusion", "--config.unified.fold=1"],
            "unified.cheers.pixel_range=unit does nothing with unified.pathway=transfusion",
        ),
        (
            [
                "--config.unified.pathway=transfusion",
                "--config.unified.fold=1",
                "--config.unified.cheers.pixel_range=signed",
                "--config.unified.cheers.positions=plain",
            ],
            "is a checkpoint of Cheers, but the model here has unified.pathway=transfusion",
        ),
        (["--language=elsewhere"], "--cheers brings a language model of its own"),
    ],
)
def test_settings_that_the_weights_were_not_trained_with_are_refused(
    checkpoint, tmp_path, capsys, flags, message
):
    folder, _ = checkpoint
    assert import_from(folder, tmp_path / "run", "--dry-run", *flags) == 1
    line = capsys.readouterr().err.strip()
    assert message in line and "\n" not in line


def test_as_a_model_of_our_own_export_it_is_refused_with_the_flag_to_use(
    checkpoint, tmp_path, capsys
):
    folder, _ = checkpoint
    assert main(["import", f"--model={folder / 'given'}", f"--workdir={tmp_path / 'run'}"]) == 1
    assert "checkpoint of Cheers by --cheers" in capsys.readouterr().err
