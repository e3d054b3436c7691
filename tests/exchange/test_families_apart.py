"""What belongs to the other family, or to none, at the command line: one line that says what to do.

Weights, workdirs, folders and options of UniCom where Cheers is meant, and the other way round.
"""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from tests.exchange.test_pytorch_cheers import CONFIGURATIONS, SHARED, written
from tests.models.diffusers_folder import SMALL2, write_folder
from tests.runs.workdirs import write_run
from unicom_jax.cli import main

CONFIG = """
from tests.tiny import tiny_config


def get_config():
    return tiny_config(stages=("pretrain",), **{own!r})
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs and configuration files by family."""
    place = tmp_path_factory.mktemp("families")
    for family, own in (("unicom", {}), ("cheers", SHARED | CONFIGURATIONS["published"])):
        (place / f"{family}.py").write_text(CONFIG.replace("{own!r}", repr(own)))
    write_run(place / "unicom")
    written(place / "cheers", "published")
    return place


def error_line(capsys, *arguments) -> str:
    """The one line that a failing command leaves on stderr."""
    assert main([str(argument) for argument in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def commands(workdir, tmp_path):
    yield "sample", f"--checkpoint={workdir}", "--prompt=a dot", f"--out={tmp_path / 'x.png'}"
    yield "evaluate", f"--workdir={workdir}"
    yield "export", f"--checkpoint={workdir}", "--to=pytorch", str(tmp_path / "exported")


def with_weights_of(runs, tmp_path, family, stage, other, theirs):
    """A copy of a family's workdir whose `stage` holds the weights of another family's stage."""
    copy = shutil.copytree(runs / family, tmp_path / "copy")
    shutil.rmtree(copy / stage / "checkpoints")
    shutil.copytree(runs / other / theirs / "checkpoints", copy / stage / "checkpoints")
    return copy


@pytest.mark.parametrize(
    ("family", "stage", "other", "theirs", "lacking"),
    [
        ("cheers", "pretrain", "unicom", "pretrain", "decoder, projector, vision"),
        ("cheers", "autoencoder", "unicom", "codec", "decoder, encoder, post_quant_conv"),
        ("unicom", "pretrain", "cheers", "pretrain", "embedding"),
    ],
)
def test_weights_of_the_other_family_are_refused_by_every_command(
    runs, tmp_path, capsys, family, stage, other, theirs, lacking
):
    copy = with_weights_of(runs, tmp_path, family, stage, other, theirs)
    for arguments in commands(copy, tmp_path):
        line = error_line(capsys, *arguments)
        assert f"has no {lacking}" in line and "it belongs to another model than the config" in line
    assert not (tmp_path / "x.png").exists() and not (tmp_path / "exported").exists()


@pytest.mark.parametrize(("family", "other"), [("cheers", "unicom"), ("unicom", "cheers")])
@pytest.mark.parametrize("command", ["train", "import"])
def test_a_workdir_of_the_other_family_is_not_continued(runs, capsys, family, other, command):
    named = {"unicom": "transfusion", "cheers": "cheers"}
    flags = [f"--config={runs / family}.py", f"--workdir={runs / other}"]
    flags += ["--language=elsewhere"] * (command == "import")
    line = error_line(capsys, command, *flags)
    assert f"unified.pathway={named[other]!r}, now it is {named[family]!r}; use the old" in line


def test_what_may_never_change_is_named_before_what_may_with_a_flag(runs, capsys):
    flags = ["--config.data.threads=1", "--config.data.source.size=9", "--config.data.patch=2"]
    line = error_line(capsys, "train", f"--workdir={runs / 'cheers'}", *flags)
    assert "data.patch=4, now it is 2; use the old value or another --workdir" in line


@pytest.mark.parametrize(
    ("flag", "known"),
    [
        ("--config.unified.init_from=", "not qwen2 or qwen3"),
        ("--config.encoder.init_from=", "not siglip or siglip2"),
        ("--language=", "not qwen2 or qwen3"),
        ("--cheers=", "a checkpoint of Cheers has 'umm'"),
        ("--encoder=", "not siglip or siglip2"),
    ],
)
@pytest.mark.parametrize("kind", ["unicom", "unicom_cheers"])
def test_an_exported_model_is_no_part_to_start_from(runs, tmp_path, capsys, flag, known, kind):
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "config.json").write_text(json.dumps({"model_type": kind}))
    config = [f"--config={runs / 'cheers.py'}", f"--workdir={tmp_path / 'run'}"]
    line = error_line(capsys, "import", *config, f"{flag}{tmp_path / 'given'}")
    assert f"model_type is '{kind}', {known}" in line


# ---- autoencoders -----------------------------------------------------------------------------

OWN = "--config.autoencoder.latent_channels=4", "--config.autoencoder.widths=(8,8)"


@pytest.fixture(scope="module")
def autoencoders(tmp_path_factory):
    """FLUX.2's kind, and that without its statistics."""
    place = tmp_path_factory.mktemp("autoencoders")
    write_folder(place / "flux2", SMALL2)
    shutil.copytree(place / "flux2", place / "without")
    (file,) = (place / "without").glob("*.safetensors")
    left = {name: x for name, x in load_file(file).items() if not name.startswith("bn.")}
    save_file(left, file)
    return place


def test_an_autoencoder_that_has_lost_its_statistics_is_no_start(
    runs, autoencoders, tmp_path, capsys
):
    config = [f"--config={runs / 'cheers.py'}", f"--workdir={tmp_path / 'run'}", *OWN]
    given = f"--config.autoencoder.init_from={autoencoders}/without"
    line = error_line(capsys, "import", *config, given)
    assert (
        "lacks bn.running_mean, bn.running_var; it is incomplete or belongs to another model"
        in line
    )
    assert line.count("the statistics by which its latents are normalised; copy them again") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["train", "import"])
def test_unicoms_place_for_an_autoencoder_is_not_read_by_cheers(
    runs, autoencoders, tmp_path, capsys, command
):
    config = [f"--config={runs / 'cheers.py'}", f"--workdir={tmp_path / 'run'}"]
    where = f"--config.codec.autoencoder.path={autoencoders / 'flux2'}"
    line = error_line(capsys, command, *config, where)
    assert "draws in the latents of the stage autoencoder" in line
    assert "name the folder in autoencoder.init_from instead" in line


def test_a_cheers_without_its_autoencoder_says_where_to_take_one_from(runs, tmp_path, capsys):
    config = [f"--config={runs / 'cheers.py'}", f"--workdir={tmp_path / 'run'}"]
    line = error_line(capsys, "train", *config)
    assert "list autoencoder before pretrain in config.stages, or import its weights" in line


# ---- sizes and names --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("data.image_size=20", "is not a multiple of data.patch=4 times unified.fold=2; take 16"),
        ("unified.pathway=cheer", "'cheer' is unknown; choose transfusion, query, cheers"),
        ("unified.cheers.gait=False", "unknown key; did you mean --config.unified.cheers.gate?"),
        ("unified.cheers.flow_over=some", "'some' is unknown; choose drawn or all"),
        ("unified.cheers.positions=odd", "'odd' is unknown; choose plain or released"),
        ("sample.grid=odd", "'odd' is unknown; choose even or released"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused(runs, tmp_path, capsys, flag, words):
    config = [f"--config={runs / 'cheers.py'}", f"--workdir={tmp_path / 'run'}"]
    assert words in error_line(capsys, "train", *config, f"--config.{flag}")
    assert not (tmp_path / "run").exists()


def test_a_size_that_does_not_fill_slots_is_not_drawn(tmp_path, capsys):
    """32 pixels at the released sizes: patches of 16, two on each side of a slot. Here 8."""
    buckets = {"data__policy": "bucket", "data__bucket_step": 8, "encoder__naflex": True}
    written(tmp_path / "run", "published", **buckets)
    flags = ["--prompt=a dot", "--size=12x16"]
    line = error_line(capsys, "sample", f"--checkpoint={tmp_path / 'run'}", *flags)
    assert "size (12, 16): sides must be multiples of 8" in line


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("flux", "its latents are decoded by an autoencoder, not by a flow"),
        ("siglip2", "no encoder was trained or imported"),
        ("qwen3", "its language model is of the family qwen2; use --to=qwen2"),
    ],
)
def test_a_part_that_the_family_does_not_have_is_not_exported(runs, tmp_path, capsys, part, words):
    flags = [f"--checkpoint={runs / 'cheers'}", f"--to={part}", tmp_path / "exported"]
    assert words in error_line(capsys, "export", *flags)


@pytest.mark.parametrize(
    ("family", "flag", "words"),
    [
        ("unicom", "--grid=released", "the velocity at t = 1, which this model does not compute"),
        ("cheers", "--codec-steps=3", "this model's codec decodes pictures at once"),
    ],
)
def test_an_option_that_the_family_does_not_have_is_refused(runs, capsys, family, flag, words):
    assert words in error_line(
        capsys, "sample", f"--checkpoint={runs / family}", "--prompt=a dot", flag
    )
