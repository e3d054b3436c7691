"""Overrides, stored configurations, and the errors that mend them."""

from __future__ import annotations

import functools
import json
import operator

import pytest

from experiments import base
from unicom_jax.config import (
    ConfigError,
    apply_overrides,
    load_config,
    to_json,
)
from unicom_jax.runs.checkpoint import read_config
from unicom_jax.runs.configuration import LATER, open_run


def test_an_override_sets_a_nested_key_and_keeps_its_type():
    config = base.get_config()
    apply_overrides(config, ["--config.codec.learning_rate=1", "--config.data.policy=naflex"])
    assert config.codec.learning_rate == 1.0 and isinstance(config.codec.learning_rate, float)
    assert config.data.policy == "naflex"


def test_a_single_value_becomes_a_tuple_where_one_is_expected():
    config = base.get_config()
    apply_overrides(config, ["--config.stages=codec"])
    assert config.stages == ("codec",)


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--config.codec.latent_dims=3", ("codec.latent_dims", "did you mean", "codec.latent_dim")),
        ("--config.codec=3", ("group", "codec.")),
        ("--config.codec.steps=many", ("codec.steps", "int")),
        ("--config.encoder.naflex=3", ("encoder.naflex", "bool")),
        ("--config.seed", ("--config.seed=1",)),
    ],
)
def test_a_wrong_override_names_key_and_mend_in_one_line(flag, words):
    with pytest.raises(ConfigError) as error:
        apply_overrides(base.get_config(), [flag])
    message = str(error.value)
    assert "\n" not in message and all(word in message for word in words)


def test_a_config_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_config(str(tmp_path / "none.py"))


def test_a_config_file_without_get_config_says_so(tmp_path):
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ConfigError, match="define `def get_config"):
        load_config(str(tmp_path / "empty.py"))


def _store(tmp_path):
    config = load_config("experiments/quickstart.py")
    (tmp_path / "config.json").write_text(to_json(config))
    return config


def test_a_stored_run_opens_without_a_file_and_equals_what_was_stored(tmp_path):
    config = _store(tmp_path)
    assert json.loads(to_json(open_run(tmp_path, None, []))) == json.loads(to_json(config))


def test_a_stored_run_may_be_prolonged_but_not_changed(tmp_path):
    _store(tmp_path)
    assert open_run(tmp_path, None, ["--config.codec.steps=7"]).codec.steps == 7
    with pytest.raises(ConfigError, match=r"codec.latent_dim=32, now it is 16"):
        open_run(tmp_path, None, ["--config.codec.latent_dim=16"])


def test_a_run_from_before_there_were_autoencoders_goes_on_in_pixels(tmp_path):
    stored = json.loads(to_json(_store(tmp_path)))
    del stored["codec"]["autoencoder"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    quickstart = "experiments/quickstart.py"
    assert open_run(tmp_path, quickstart, []).codec.autoencoder.path == ""
    with pytest.raises(ConfigError, match=r"codec.autoencoder.path='', now it is 'vae'"):
        open_run(tmp_path, quickstart, ["--config.codec.autoencoder.path=vae"])


@pytest.mark.parametrize("key", sorted(LATER))
def test_a_run_from_before_a_key_goes_on_as_it_was(tmp_path, key):
    stored = json.loads(to_json(_store(tmp_path)))
    *groups, name = key.split(".")
    del functools.reduce(dict.__getitem__, groups, stored)[name]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    opened = json.loads(to_json(open_run(tmp_path, None, [])))
    for config in (opened, read_config(tmp_path)):
        assert functools.reduce(operator.getitem, key.split("."), config) == LATER[key]


def test_what_a_run_read_from_its_autoencoder_does_not_contradict_its_config_file(tmp_path):
    stored = json.loads(to_json(_store(tmp_path)))
    stored["codec"]["autoencoder"]["facts"] = {"sizes": {"widths": [8, 8]}, "canvas": [2, 2]}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert open_run(tmp_path, "experiments/quickstart.py", []).codec.autoencoder.path == ""
    kept = open_run(tmp_path, None, []).codec.autoencoder.facts
    assert kept.sizes.widths == (8, 8) and kept.canvas == (2, 2)


def test_an_empty_workdir_without_config_asks_for_one(tmp_path):
    with pytest.raises(ConfigError, match="give --config"):
        open_run(tmp_path, None, [])
