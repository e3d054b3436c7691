"""`unicom import` as a user meets it, and training that starts from what it wrote."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import shutil

import chex
import jax
import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from data_pipelines.sequences.tokenizer import train_tokenizer
from tests.families.documents import lively
from tests.models.diffusers_folder import write_folder
from tests.runs.workdirs import write_run
from tests.tiny import tiny_config
from unicom_jax.cli import main
from unicom_jax.config import ConfigError, from_json
from unicom_jax.exchange import imports
from unicom_jax.exchange.export import export
from unicom_jax.exchange.hub import origins_of
from unicom_jax.exchange.written import Options
from unicom_jax.families.build import build_encoder, build_unified
from unicom_jax.interop.folders import write_model
from unicom_jax.interop.layouts.description import DESCRIPTION
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.interop.mapping import places
from unicom_jax.models.autoencoder import AutoencoderKL, flux_autoencoder
from unicom_jax.models.flux import FLUX_SIZES
from unicom_jax.models.mmdit import MMDIT_SIZES
from unicom_jax.models.qwen_vl import QWEN_VL_SIZES
from unicom_jax.models.transformer import TRANSFORMER_SIZES
from unicom_jax.models.vision_encoder import VisionEncoder
from unicom_jax.runs import imported
from unicom_jax.runs.checkpoint import read_config, restore_params
from unicom_jax.runs.workdir import stage_steps

CONFIG = """
from tests.tiny import tiny_config

def get_config():
    return tiny_config(stages=("codec", "pretrain"), codec__steps=1, pretrain__steps=1)
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with a configuration, a vision tower and a language model of its sizes."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "tiny.py").write_text(CONFIG)
    config = tiny_config()
    vision, language = build_encoder(config).vision, build_unified(config).transformer
    language = dataclasses.replace(language, vocab_size=300)
    for name, layout, module in (("siglip", "siglip", vision), ("qwen", "qwen", language)):
        write_model(folder / name, LAYOUTS[layout], module, lively(module), dtype="BF16")
    return folder


def run(command: str, given, workdir, *flags) -> int:
    config = [] if (workdir / "config.json").is_file() else [f"--config={given / 'tiny.py'}"]
    return main([command, f"--workdir={workdir}", *config, *flags])


def parts(given):
    return f"--encoder={given / 'siglip'}", f"--language={given / 'qwen'}"


def weights(workdir, stage):
    module = build_unified(read_config(workdir))
    return restore_params(workdir, stage, module.abstract())


def test_parts_become_step_0_of_their_stages(given, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert run("import", given, workdir, *parts(given)) == 0
    assert stage_steps(workdir, "encoder") == stage_steps(workdir, "pretrain") == [0]
    assert stage_steps(workdir, "codec") == []
    config = read_config(workdir)
    encoder = build_encoder(config)
    vision = restore_params(workdir, "encoder", encoder.abstract(), parts=("vision",))["vision"]
    rounded = jax.tree.map(lambda x: np.asarray(x, jax.numpy.bfloat16), lively(encoder.vision))
    rounded = jax.tree.map(lambda x: np.asarray(x, np.float32), rounded)
    chex.assert_trees_all_equal(vision, rounded, strict=True)
    assert "rows 300 to" in capsys.readouterr().out


@pytest.fixture(scope="module")
def trained(given, tmp_path_factory):
    """A run that was imported and then trained. Not to be changed."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    assert run("import", given, workdir, *parts(given)) == 0
    assert run("train", given, workdir) == 0
    return workdir


@pytest.mark.slow
def test_training_starts_from_what_was_imported_as_from_init_from(given, trained, tmp_path):
    keys = (
        f"--config.encoder.init_from={given / 'siglip'}",
        f"--config.unified.init_from={given / 'qwen'}",
    )
    assert run("train", given, tmp_path / "run", *keys) == 0
    assert stage_steps(trained, "pretrain")[-1] == 1
    imported, named = (weights(one, "pretrain") for one in (trained, tmp_path / "run"))
    chex.assert_trees_all_equal(imported, named, strict=True)


def test_a_dry_run_checks_and_shows_everything_and_writes_nothing(given, tmp_path, capsys):
    assert run("import", given, tmp_path / "run", *parts(given), "--dry-run") == 0
    assert not (tmp_path / "run").exists()
    shown = capsys.readouterr().out
    config = tiny_config()
    count = build_encoder(config).vision.param_count()
    assert f"{count:,}" in shown and "BF16" in shown and "nothing written" in shown


def test_an_export_names_the_model_of_the_hub_that_was_imported(given, tmp_path):
    cached = tmp_path / "hub/models--google--siglip2/snapshots/0"
    shutil.copytree(given / "siglip", cached)
    workdir = tmp_path / "run"
    assert run("import", given, workdir, f"--encoder={cached}", parts(given)[1]) == 0
    assert origins_of(workdir, read_config(workdir)) == ["google/siglip2"]


def error_of(capsys, status: int) -> str:
    assert status == 1
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    return line


def test_a_stage_that_has_weights_is_left_alone(given, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert run("import", given, workdir, parts(given)[0]) == 0
    line = error_of(capsys, run("import", given, workdir, parts(given)[0]))
    assert "encoder has checkpoints already; name a new --workdir" in line


@pytest.mark.parametrize("there", [False, True])
def test_an_import_that_fails_midway_leaves_nothing(given, tmp_path, monkeypatch, there):
    if there:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "notes.txt").write_text("mine")

    def fail_at_the_second(directory, params):
        if "pretrain" in str(directory):
            raise OSError("no space left on device")
        directory.mkdir(parents=True)

    monkeypatch.setattr(imported, "save_import", fail_at_the_second)
    assert run("import", given, tmp_path / "run", *parts(given)) == 1
    left = [path.name for path in tmp_path.rglob("*") if path.is_relative_to(tmp_path / "run")]
    assert left == (["run", "notes.txt"] if there else [])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "nothing to import; give --encoder"),
        (["--language=nowhere"], "nowhere/config.json is missing"),
        (["--compressor=x", '--config.stages=("pretrain",)'], "add codec to the stages"),
        (["--language=x", '--config.stages=("codec",)'], "does not train the others; add align or"),
        (["--decoder=x"], "set --config.codec.decoder.kind=flux"),
        (["--model=x"], "give it alone"),
    ],
)
def test_what_cannot_be_imported_is_answered_with_the_fix(given, tmp_path, capsys, flags, message):
    assert message in error_of(capsys, run("import", given, tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()


def test_two_flags_for_one_folder_are_refused(tmp_path):
    config, both = tiny_config(unified__pathway="cheers"), {"autoencoder": "y", "cheers": "x"}
    with pytest.raises(ConfigError, match="--cheers gives autoencoder.init_from, as another flag"):
        imports.import_parts(config, both, tmp_path / "run", Console(), dry_run=True)


# ---- autoencoders -----------------------------------------------------------------------------


def test_an_autoencoder_alone_is_imported(given, tmp_path, capsys):
    write_folder(tmp_path / "vae")
    flags = f"--autoencoder={tmp_path / 'vae'}"
    assert run("import", given, tmp_path / "dry", flags, "--dry-run") == 0
    assert "autoencoder" in capsys.readouterr().out and not (tmp_path / "dry").exists()
    assert run("import", given, tmp_path / "run", flags) == 0
    assert (tmp_path / "run" / "autoencoder" / "config.json").is_file()
    assert read_config(tmp_path / "run")["codec"]["autoencoder"]["facts"]


@pytest.mark.parametrize("part", ["decoder", "compressor"])
def test_a_part_that_the_pathway_does_not_have_is_refused(given, tmp_path, capsys, part):
    flags = (f"--{part}={tmp_path / 'part'}", "--config.unified.pathway=cheers")
    assert run("import", given, tmp_path / "run", *flags) == 1
    assert "does nothing with unified.pathway=cheers" in capsys.readouterr().err


def spoil(file, kind: str) -> str:
    """Damages a file of weights; gives what the message says."""
    if kind == "cut in half":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
        return "is damaged"
    state = load_file(file)
    name = sorted(state)[0]
    if kind == "nan":
        state[name] = np.full_like(state[name], np.nan)
    else:
        del state[name]
    save_file(state, file)
    return f"{name} holds NaN" if kind == "nan" else f"lacks {name}"


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        *itertools.product(("import", "dry run", "train"), ("cut in half", "incomplete")),
        ("import", "nan"),
        ("train", "nan"),  # a dry run reads headers only
    ],
)
def test_a_damaged_autoencoder_is_refused_before_anything_is_computed(
    given, tmp_path, capsys, command, kind
):
    write_folder(tmp_path / "vae")
    message = spoil(tmp_path / "vae" / "diffusion_pytorch_model.safetensors", kind)
    workdir, folder = tmp_path / "run", tmp_path / "vae"
    status = {
        "import": lambda: run("import", given, workdir, f"--autoencoder={folder}"),
        "dry run": lambda: run("import", given, workdir, f"--autoencoder={folder}", "--dry-run"),
        "train": lambda: run("train", given, workdir, f"--config.codec.autoencoder.path={folder}"),
    }[command]()
    assert message in error_of(capsys, status)
    assert not list(workdir.glob("*/checkpoints"))


def test_weights_that_are_not_finite_are_not_imported(given, tmp_path, capsys):
    folder = shutil.copytree(given / "qwen", tmp_path / "qwen")
    file = folder / "model.safetensors"
    state = load_file(file)
    state["model.norm.weight"][3] = np.inf
    save_file(state, file)
    status = run("import", given, tmp_path / "run", f"--language={folder}")
    assert "model.norm.weight holds NaN or infinite values" in error_of(capsys, status)
    assert not (tmp_path / "run").exists()


def test_an_import_says_which_of_two_copies_of_the_weights_it_reads(given, tmp_path, capsys):
    folder = shutil.copytree(given / "qwen", tmp_path / "qwen")
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert run("import", given, tmp_path / "run", f"--language={folder}", "--dry-run") == 0
    shown = capsys.readouterr().out
    assert f"note: model.safetensors.index.json in {folder} is not read" in shown


# ---- a whole model ----------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["written", pytest.param("trained", marks=pytest.mark.slow)])
def exported(request, tmp_path_factory):
    """A run, random or imported and trained, and the folder it went out to."""
    base = tmp_path_factory.mktemp("exported")
    trained = request.param == "trained"
    workdir = request.getfixturevalue("trained") if trained else write_run(base / "run")
    return workdir, export(workdir, base / "out", Options())


def test_an_exported_model_comes_back_bit_for_bit(exported, tmp_path):
    workdir, folder = exported
    assert main(["import", f"--model={folder}", f"--workdir={tmp_path / 'run'}"]) == 0
    export(tmp_path / "run", tmp_path / "again", Options())
    file = "model.safetensors"
    assert (tmp_path / "again" / file).read_bytes() == (folder / file).read_bytes()
    before, after = (from_json(read_config(path)) for path in (workdir, tmp_path / "run"))
    assert after.stages == ("pretrain",)  # what training continues with
    before.stages = after.stages
    assert before == after


def test_an_exported_repetition_comes_back_as_the_first_time_of_its_stage():
    assert imports._stage_of("unified", "unified", {"steps": {"unified": ["sft-2", 4]}}) == "sft"


def test_a_damaged_export_leaves_no_workdir(exported, tmp_path, capsys):
    folder = shutil.copytree(exported[1], tmp_path / "out")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    line = error_of(capsys, main(["import", f"--model={folder}", f"--workdir={tmp_path / 'run'}"]))
    assert f"{file} is damaged" in line and not (tmp_path / "run").exists()


def test_a_folder_that_was_not_exported_here_is_no_model(given, tmp_path, capsys):
    status = main(["import", f"--model={given / 'qwen'}", f"--workdir={tmp_path / 'run'}"])
    assert "config.json has no run.config" in error_of(capsys, status)


# ---- full size, by shapes ---------------------------------------------------------------------


def hollow(folder, layout, module) -> None:
    """A folder whose weights have a true header and take no disk space."""
    folder.mkdir()
    (folder / DESCRIPTION).write_text(json.dumps(layout.describe(module)))
    header, stop = {}, 0
    for name, place in places(layout.table(module), module.specs()).items():
        start, stop = stop, stop + 2 * math.prod(place.shape)
        header[name] = {"dtype": "BF16", "shape": place.shape, "data_offsets": [start, stop]}
    text = json.dumps(header).encode()
    with (folder / f"{layout.stem}.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + stop)


def dry_import(tmp_path, capsys, config: str, flags: dict[str, str], released: dict) -> str:
    """What a dry import of hollow folders prints; `flags`: part -> the flag with its folder."""
    for part, (layout, module) in released.items():
        hollow(tmp_path / part, LAYOUTS[layout], module)
    train_tokenizer(["a red circle"], 300).save(tmp_path / "tokenizer")
    status = main(
        [
            "import",
            f"--config={config}",
            f"--config.data.tokenizer={tmp_path / 'tokenizer'}",
            f"--workdir={tmp_path / 'run'}",
            *(f"--{flags[part]}={tmp_path / part}" for part in released),
            "--dry-run",
        ]
    )
    shown = capsys.readouterr().out
    assert status == 0 and not (tmp_path / "run").exists()
    return shown


def test_the_papers_model_is_checked_at_full_size_by_shapes(tmp_path, capsys):
    released = {
        "encoder": ("siglip", VisionEncoder.named("so400m")),
        "language": ("qwen", TRANSFORMER_SIZES["qwen2.5-7b"]()),
        "decoder": ("flux", FLUX_SIZES["flux.1-dev"]()),
        "autoencoder": ("autoencoder", flux_autoencoder()),
    }
    flags = {part: part for part in released}
    shown = dry_import(tmp_path, capsys, "experiments/unicom_7b.py", flags, released)
    for count in ("427,888,064", "7,615,616,512", "11,901,408,320"):
        assert count in shown


def test_uae_as_published_is_checked_at_full_size_by_shapes(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # for the whole table
    autoencoder = AutoencoderKL(16, (128, 256, 512, 512), resnets=2, scale=1.5305, shift=0.0609)
    released = {
        "language": ("qwen_vl", QWEN_VL_SIZES["qwen2.5-vl-3b"]()),
        "decoder": ("sd3", MMDIT_SIZES["sd3.5-large"]()),
        "autoencoder": ("autoencoder", autoencoder),
    }
    flags = {part: part for part in released}
    shown = dry_import(tmp_path, capsys, "experiments/uae_3b.py", flags, released)
    for count in ("3,085,938,688", "668,684,288", "8,146,280,768", "83,819,683"):
        assert count in shown
