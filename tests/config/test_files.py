"""Configuration files, overrides, and what their errors say."""

from __future__ import annotations

import json

import pytest

from experiments import base
from unicom_jax.config import ConfigError, apply_overrides, from_json, load_config, to_json
from unicom_jax.config.key import checked_path


def value_of(config, name):
    for part in name.split("."):
        config = config[part]
    return config


@pytest.fixture
def file(tmp_path):
    """Writes a configuration file whose `get_config` has these lines; line 9 is the first."""

    def write(body: str, before: str = "") -> str:
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        text = (
            "import dataclasses\n\nfrom experiments import base\n\n"
            f"@dataclasses.dataclass\nclass Sizes:\n    width: int = 64\n{before}\n"
            f"def get_config():\n    c = base.get_config()\n{lines}    return c\n"
        )
        path = tmp_path / "mine.py"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


# ---- overrides --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("codec.learning_rate=1", 1.0),
        ("data.policy=naflex", "naflex"),
        ("stages=codec", ("codec",)),
        ("stages=encoder,codec", ("encoder", "codec")),
        ("data.source.path=2024", "2024"),
        ("data.source.path=True", "True"),
        ("data.source.path=photos [v2]", "photos [v2]"),
        ('data.source.path=""', ""),
        ("codec.steps=1e5", 100_000),
        ("encoder.naflex=true", True),
        ("sample.guidance_interval=(0,0.5)", (0.0, 0.5)),
        ("sample.guidance_interval=0.1,1", (0.1, 1.0)),
        ("encoder.freeze=vision/.*", ("vision/.*",)),
        ("data.scenes.sizes=((32,32),(32,64))", ((32, 32), (32, 64))),
        ("data.prompt_open=", ""),
    ],
)
def test_an_override_is_read_as_the_type_of_its_key(flag, value):
    config = base.get_config()
    apply_overrides(config, [f"--config.{flag}"])
    found = value_of(config, flag.partition("=")[0])
    assert found == value and type(found) is type(value)


def test_a_folder_whose_name_begins_with_a_tilde_is_found(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~photos").mkdir()
    assert checked_path("data.source.path", "~photos") == str(tmp_path / "~photos")
    with pytest.raises(ConfigError, match="~no-such-user/x: .*write the path out"):
        checked_path("data.source.path", "~no-such-user/x")


def test_a_tilde_in_a_path_is_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = base.get_config()
    apply_overrides(config, ["--config.data.source.path=~/photos"])
    assert config.data.source.path == "/home/me/photos"


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("codec.latent_dims=3", ("codec.latent_dims", "did you mean --config.codec.latent_dim?")),
        ("pretrian.steps=3", ("did you mean --config.pretrain.steps?",)),
        ("codec=3", ("it is a group", "codec.")),
        ("pretrain.mixture.zzz=1", ("unicom config explain pretrain.mixture",)),
        ("codec.steps=many", ("--config.codec.steps='many'", "whole number (int)")),
        ("encoder.naflex=3", ("encoder.naflex=3", "True or False")),
        ("sample.guidance_interval=(1,2,3)", ("give 2 values",)),
        ("seed=-1", ("--config.seed=-1: give at least 0",)),
        ("seed=1.5", ("whole number",)),
        ("codec.learning_rate=1e999", ("finite",)),
        ("codec.learning_rate=nan", ("finite",)),
        ("compute_dtype=bf16", ("choose float32 or bfloat16",)),
        ("data.scenes.colours=('mauve',)", ("mauve", "choose red, orange")),
        ("data.source.path=az://bucket/photos", ("only paths on file systems and in gs://",)),
        ("data.scenes.sizes=(64,64)", ("((64, 64),)",)),
    ],
)
def test_a_wrong_override_names_key_and_remedy_in_one_line(flag, words):
    with pytest.raises(ConfigError) as error:
        apply_overrides(base.get_config(), [f"--config.{flag}"])
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_an_override_without_a_value_is_not_understood():
    with pytest.raises(ConfigError, match="--config.seed=1"):
        apply_overrides(base.get_config(), ["--config.seed"])


# ---- files ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("c.pretrain.step = 77", ("unknown key pretrain.step:", "did you mean pretrain.steps?")),
        ("c.data.source.heldout = .5", ("did you mean data.source.held_out?",)),
        ("c['pretrain']['stps'] = 3", ("did you mean pretrain.steps?",)),
        ("c.pretrain.update({'stepz': 3})", ("did you mean pretrain.steps?",)),
        ("print(c.pretrian)", ("unknown key pretrian", "did you mean pretrain?")),
        ("c.pretrain.steps = 'x'", ("pretrain.steps='x'", "whole number")),
        ("c.data.source = 3", ("data.source", "it is a group")),
        ("1 / 0", ("ZeroDivisionError: division by zero",)),
        ("raise SystemExit('bye')", ("SystemExit: bye",)),
        ("c.data.sources = {'kind': 'scenes'}", ("data.sources={'kind': 'scenes'}", "a tuple")),
    ],
)
def test_an_error_inside_get_config_names_file_and_line(file, body, words):
    path = file(body)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    message = str(error.value)
    assert message.startswith(f"{path}, line 11: ") and "\n" not in message
    assert all(word in message for word in words), message


def test_a_syntax_error_names_file_and_line(file):
    path = file("pass", before="def (\n")
    with pytest.raises(ConfigError, match=rf"{path}, line 8: invalid syntax"):
        load_config(path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("c.pretrain.learning_rate = -1.0", "pretrain.learning_rate=-1.0: give at least 0"),
        ("c.sample.guidance_interval = (1, 2, 3)", "give 2 values"),
        ("c.pretrain.mixture = {'text': 1.0}", "pretrain.mixture.text_to_image is missing"),
        ("return 3", "get_config\\(\\) returns int"),
    ],
)
def test_a_value_out_of_range_in_a_file_is_named(file, body, words):
    with pytest.raises(ConfigError, match=words):
        load_config(file(body))


def test_a_file_may_hold_dataclasses_and_import_siblings(file, tmp_path):
    (tmp_path / "sibling_of_mine.py").write_text("WIDTH = 96\n", encoding="utf-8")
    body = (
        "import sibling_of_mine\n"
        "c.codec.decoder.width = Sizes(width=sibling_of_mine.WIDTH).width\n"
        "c.stages = ['encoder']"
    )
    config = load_config(file(body))
    assert config.codec.decoder.width == 96 and config.stages == ("encoder",)


def test_an_error_in_a_sibling_names_the_sibling(file, tmp_path):
    (tmp_path / "helper_of_mine.py").write_text("def f(c):\n    c.seeed = 3\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"helper_of_mine.py, line 2: unknown key seeed: did you"):
        load_config(file("import helper_of_mine\nhelper_of_mine.f(c)"))


def test_a_config_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(str(tmp_path / "none.py"))


def test_a_config_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(
        ConfigError, match="config.json is not a Python file; give one that ends in .py"
    ):
        load_config(str(tmp_path / "config.json"))


def test_a_config_file_without_get_config_says_so(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="define `def get_config"):
        load_config(str(tmp_path / "empty.py"))


def test_json_keeps_tuples_and_locks():
    config = base.get_config()

    again = from_json(json.loads(to_json(config)))
    assert again.data.scenes.sizes == ((64, 64),) and again.is_locked
