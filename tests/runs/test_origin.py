"""`STAGE.init_from=WORKDIR:STAGE`: what a new workdir takes over from another run, and refuses."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import chex
import pytest
from rich.console import Console

from data_pipelines.sequences.tokenizer import TokenizerError, train_tokenizer
from tests.families.documents import lively
from tests.models.diffusers_folder import write_folder
from tests.runs.workdirs import begin_run, write_run
from tests.tiny import UAE, tiny_config
from unicom_jax.config import ConfigError
from unicom_jax.exchange.export import export
from unicom_jax.exchange.written import Options
from unicom_jax.families.build import build_autoencoder, build_encoder, build_unified
from unicom_jax.interop.folders import write_model
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.runs import weights
from unicom_jax.runs.imported import check_stages, import_frozen_parts
from unicom_jax.runs.start import start_run
from unicom_jax.runs.workdir import stage_steps


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """The run that others start from. Not to be changed."""
    return write_run(tmp_path_factory.mktemp("other") / "run")


def start(config, workdir) -> str:
    """What a run does before it trains; what it printed."""
    printed = io.StringIO()
    check_stages(config)
    start_run(config, workdir)
    import_frozen_parts(config, workdir, Console(file=printed, width=1000))
    return printed.getvalue()


def sweep(other, *stages, origin="sft", label="pretrain", **overrides):
    stages = stages or ("sft",)
    return tiny_config(stages=stages, **{f"{origin}__init_from": f"{other}:{label}"}, **overrides)


def test_a_new_workdir_takes_what_its_stage_starts_from_and_reads(other, tmp_path):
    printed = start(sweep(other), tmp_path / "run")
    assert f"sft: the weights of {other / 'pretrain'} at step 7" in printed
    used = {"vision": ("encoder", 0), "codec": ("codec", 0), "unified": ("sft", 0)}
    assert weights.steps_in_use(tmp_path / "run") == used
    assert (tmp_path / "run/tokenizer/tokenizer.json").is_file()
    here, there = (weights.load(one)[2] for one in (tmp_path / "run", other))
    chex.assert_trees_all_equal(here, there, strict=True)


def test_the_new_workdir_needs_the_other_run_only_once(other, tmp_path):
    given = shutil.copytree(other, tmp_path / "given")
    start(sweep(given), tmp_path / "run")
    before = weights.load(tmp_path / "run")[2]
    shutil.rmtree(given)
    assert start(sweep(given), tmp_path / "run") == ""
    chex.assert_trees_all_equal(weights.load(tmp_path / "run")[2], before, strict=True)
    target = export(tmp_path / "run", tmp_path / "exported", Options())
    steps = json.loads((target / "config.json").read_text())["run"]["steps"]
    assert steps["unified"] == ["sft", 0]


def test_files_are_shared_where_they_can_be(other, tmp_path):
    start(sweep(other), tmp_path / "run")
    there = other / "codec/checkpoints/7/params"
    files = [path.relative_to(there) for path in there.rglob("*") if path.is_file()]
    here = tmp_path / "run/codec/checkpoints/0/params"
    assert files and all((here / path).samefile(there / path) for path in files)


def test_a_part_that_this_run_trains_is_not_taken(other, tmp_path):
    start(sweep(other, "codec", "sft"), tmp_path / "run")
    used = {"vision": ("encoder", 0), "unified": ("sft", 0)}
    assert weights.steps_in_use(tmp_path / "run") == used


def test_an_earlier_stage_can_start_from_another_run_too(other, tmp_path):
    start(sweep(other, "codec", origin="codec", label="codec"), tmp_path / "run")
    used = {"vision": ("encoder", 0), "codec": ("codec", 0)}
    assert weights.steps_in_use(tmp_path / "run") == used


def test_a_part_that_is_not_trained_can_come_whole_from_another_run(other, tmp_path):
    config = sweep(other, "codec", origin="encoder", label="encoder")
    start(config, tmp_path / "run")
    assert weights.steps_in_use(tmp_path / "run") == {"vision": ("encoder", 0)}


def test_a_released_autoencoder_that_is_read_and_not_trained_is_imported_as_it_is(tmp_path):
    given, workdir = tmp_path / "given", tmp_path / "run"
    config = tiny_config(
        stages=("pretrain",),
        unified__pathway="cheers",
        unified__fold=2,
        autoencoder__init_from=str(given),
    )
    module = build_autoencoder(config)
    params = write_folder(given, module)
    assert f"autoencoder: starts with the autoencoder from {given}" in start(config, workdir)
    assert weights.steps_in_use(workdir) == {"codec": ("autoencoder", 0)}
    chex.assert_trees_all_equal(weights.restore(workdir, config, only=("codec",))["codec"], params)
    assert start(config, workdir) == ""


def test_an_autoencoder_comes_along(tmp_path):
    options = {"codec__autoencoder__path": "small", "codec__decoder__prediction": "velocity"}
    given = write_run(tmp_path / "given", **options)
    options["codec__autoencoder__path"] = "gone"
    start(sweep(given, **options), tmp_path / "run")
    here, there = (weights.load(one)[2] for one in (tmp_path / "run", given))
    chex.assert_trees_all_equal(here, there, strict=True)


def test_another_tokenizer_is_refused(other, tmp_path):
    train_tokenizer(["other words"] * 9, 300).save(tmp_path)
    config = sweep(other, data__tokenizer=str(tmp_path))
    with pytest.raises(TokenizerError, match=r"sft\.init_from=.* was trained with tokenizer"):
        start(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"unified__transformer__rope_theta": 500.0}, "rope_theta is 10000.0 there and 500.0 here"),
        ({"codec__latent_dim": 16}, "there and .* here; use the sizes of .*config.json"),
        ({"encoder__vision__heads": 4}, r"encoder\.vision\.heads is 2 there and 4 here"),
    ],
)
def test_other_sizes_are_refused_in_one_line_even_where_all_shapes_agree(
    other, tmp_path, overrides, message
):
    with pytest.raises(ConfigError, match=message) as printed:
        start(sweep(other, **overrides), tmp_path / "run")
    assert "\n" not in str(printed.value)
    assert not list((tmp_path / "run").glob("*/checkpoints/*"))  # nothing to mix with another run
    assert not (tmp_path / "run/sft").exists()


def test_how_modules_compute_may_differ(other, tmp_path):
    overrides = {"unified__transformer__remat": "full", "unified__time": "logit_normal"}
    start(sweep(other, **overrides), tmp_path / "run")
    assert weights.steps_in_use(tmp_path / "run")["unified"] == ("sft", 0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (sweep("x", "pretrain", "sft"), "trains pretrain first, from which sft would start"),
        (sweep("x", "codec"), "config.stages does not train sft"),
        (
            sweep("x", label="codec"),
            "stage codec trains the part codec, but sft trains the part unified",
        ),
        (sweep("x"), "no checkpoint under x/pretrain/checkpoints; give WORKDIR:STAGE"),
        (tiny_config(stages=("sft",), sft__init_from="Qwen"), "belongs in unified.init_from"),
    ],
)
def test_an_origin_that_cannot_be_is_refused_by_its_key(config, message, tmp_path):
    with pytest.raises(ConfigError, match=r"sft\.init_from=") as printed:
        start(config, tmp_path / "run")
    assert message in str(printed.value)


def test_an_encoder_that_only_compares_pictures_may_come_from_a_folder(tmp_path):
    """UAE draws without it, and the run that it starts from has none."""

    def modules(config):
        return {
            "autoencoder": (build_autoencoder(config), 0.2),
            "longcap": (build_unified(config), 0.2),
        }

    base = begin_run(tiny_config(**UAE, stages=("longcap",)), tmp_path / "base", modules)
    own = {**UAE, "stages": ("u4g",), "u4g__init_from": f"{base}:longcap"}
    words = "no weights of the part encoder; give encoder.init_from, or set u4g.rewards.cosine=0"
    with pytest.raises(ConfigError, match=words):
        start(tiny_config(**own), tmp_path / "none")
    start(tiny_config(**own, u4g__rewards__cosine=0.0), tmp_path / "without")
    assert stage_steps(tmp_path / "without", "encoder") == []
    vision = build_encoder(tiny_config(**UAE)).vision
    write_model(tmp_path / "siglip", LAYOUTS["siglip"], vision, lively(vision))
    start(tiny_config(**own, encoder__init_from=str(tmp_path / "siglip")), tmp_path / "given")
    for label in ("encoder", "autoencoder", "u4g"):
        assert stage_steps(tmp_path / "given", label) == [0]
