"""What a workdir keeps of its configuration, and what may change when a run resumes."""

from __future__ import annotations

import functools
import json
import operator
from pathlib import Path

import pytest

from experiments import base
from unicom_jax.config import KEYS, ConfigError, load_config, to_json, values
from unicom_jax.config.check import check_settings
from unicom_jax.config.key import ALWAYS, NEUTRAL
from unicom_jax.interop.layouts.unicom import of_run
from unicom_jax.runs.checkpoint import read_config
from unicom_jax.runs.configuration import data_start, open_run, store
from unicom_jax.runs.data import source_changes
from unicom_jax.runs.items import CheckpointError

QUICKSTART = "experiments/quickstart.py"
OTHERS = ("align", "continue", "sft")  # have the same keys as pretrain
LATER = {name: key.before for name, key in KEYS.items() if key.before is not ALWAYS}


@pytest.fixture
def workdir(tmp_path):
    """A workdir with the quickstart's configuration in which no stage has started."""
    store(load_config(QUICKSTART), tmp_path)
    return tmp_path


def start(workdir, *stages):
    for stage in stages:
        (workdir / stage / "checkpoints" / "5").mkdir(parents=True)


def stored(workdir):
    return json.loads((workdir / "config.json").read_text(encoding="utf-8"))


def change(workdir, *flags, allow=False):
    return open_run(workdir, None, [f"--config.{flag}" for flag in flags], allow_change=allow)


def test_a_stored_run_opens_without_a_file_and_equals_what_was_stored(workdir):
    assert json.loads(to_json(change(workdir))) == stored(workdir)


def test_an_empty_workdir_without_config_asks_for_one(tmp_path):
    with pytest.raises(ConfigError, match="give --config"):
        open_run(tmp_path, None, [])


def test_neutral_keys_may_always_change(workdir):
    start(workdir, "encoder", "codec", "pretrain")
    others = {bool: "true", int: 5, float: 0.5, str: "x", tuple: "(0.0, 0.5)"}
    changes = []
    for name, key in KEYS.items():
        if key.resume == NEUTRAL:
            choice = next((choice for choice in key.choices if choice != key.default), None)
            texts = key.kind is tuple and key.item_kind is str
            changes.append(f"{name}={choice or ('a,b' if texts else others[key.kind])}")
    opened = change(workdir, *changes)
    assert len(changes) > 50 and opened.data.workers == 5 and opened.pretrain.steps == 5


@pytest.mark.parametrize(
    "flag",
    [
        "pretrain.learning_rate=0.001",
        "pretrain.batch_size=8",
        "pretrain.clip_norm=0.5",
        "pretrain.mixture.edit=0.5",
        "pretrain.max_skipped=50",
        "pretrain.ema_decay=0.5",
        "data.source.held_out=0.1",
    ],
)
def test_a_recorded_key_changes_with_the_flag_alone(workdir, flag):
    start(workdir, "encoder", "codec", "pretrain")
    with pytest.raises(ConfigError, match=f"{flag.partition('=')[0]}.*add --allow-change") as error:
        change(workdir, flag)
    assert "\n" not in str(error.value)
    change(workdir, flag, allow=True)


@pytest.mark.parametrize(
    "flag",
    [
        "codec.latent_dim=16",
        "unified.transformer.depth=2",
        "data.patch=8",
        "seed=3",
        "pretrain.ema_decay=0",  # a checkpoint without averages holds other things
        "pretrain.spike_factor=10",
        "encoder.pixel_weight=0",
    ],
)
def test_a_structural_change_is_refused_even_with_the_flag(workdir, flag):
    start(workdir, "encoder", "codec", "pretrain")
    with pytest.raises(ConfigError, match="use the old value or another --workdir"):
        change(workdir, flag, allow=True)


def test_a_source_may_move_and_changes_otherwise_with_the_flag_alone(workdir):
    items = "({'kind':'folder','path':'photos'},{'kind':'scenes','weight':3})"
    store(change(workdir, f"data.sources={items}"), workdir)
    start(workdir, "encoder")
    assert change(workdir, "data.sources[0].path=/mnt/photos").data.sources[0]["path"]
    with pytest.raises(ConfigError, match=r"data.sources\[1\].weight=3.0, now it is 5.0; add --a"):
        change(workdir, "data.sources[1].weight=5")
    store(change(workdir, "data.sources[1].weight=5", allow=True), workdir)
    history = (workdir / "config_history.jsonl").read_text(encoding="utf-8")
    assert '"data.sources[1].weight": [3.0, 5.0]' in history
    with pytest.raises(ConfigError, match="started with data.sources=.*add --allow-change"):
        change(workdir, "data.sources=({'kind':'scenes'},)")


def test_the_refusal_names_key_and_both_values(workdir):
    start(workdir, "codec")
    with pytest.raises(ConfigError, match=r"codec.latent_dim=32, now it is 16"):
        change(workdir, "codec.latent_dim=16")


def test_stages_that_have_not_started_are_free(workdir):
    start(workdir, "encoder", "codec")
    change(workdir, "pretrain.learning_rate=0.1", "pretrain.ema_decay=0", "sft.batch_size=8")
    change(workdir, "unified.transformer.depth=2", "unified.pathway=query")
    with pytest.raises(ConfigError, match="codec.latent_dim"):
        change(workdir, "codec.latent_dim=16")


def test_everything_is_free_before_the_first_checkpoint(workdir):
    opened = change(workdir, "data.patch=8", "codec.latent_dim=16", "seed=3")
    assert opened.data.patch == 8


def test_rows_of_vocabulary_may_be_added_until_a_stage_that_is_trained_here_has_started(workdir):
    change(workdir, "stages=pretrain")
    config = change(workdir, "stages=pretrain")
    store(config, workdir)
    start(workdir, "encoder")  # imported, not trained here
    change(workdir, "data.padded_vocab_size=5000")
    start(workdir, "pretrain")
    with pytest.raises(ConfigError, match="padded_vocab_size"):
        change(workdir, "data.padded_vocab_size=5000")


def test_a_run_of_the_first_version_resumes_and_is_used(tmp_path):
    """Its config.json is as that version wrote it, without the keys that came later."""
    text = (Path(__file__).parent / "first_version.json").read_text(encoding="utf-8")
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    start(tmp_path, "encoder", "codec", "pretrain")
    old = dict(values(json.loads(text)))
    opened = dict(values(json.loads(to_json(change(tmp_path, "pretrain.steps=8")))))
    assert {name: opened[name] for name in old if name != "pretrain.steps"} == {
        name: value for name, value in old.items() if name != "pretrain.steps"
    }
    added = opened.keys() - old.keys()
    assert {"stage_seeds", "unified.fold", "gradient_dtype"} <= added
    stages = {name.split(".")[0] for name in old}  # one that came later was not trained

    def without(name):
        """What holds in a run from before the key."""
        key = KEYS[name]
        return key.before if name.split(".")[0] in {*stages, *KEYS} else key.default

    assert all(opened[name] == json.loads(json.dumps(without(name))) for name in added)
    check_settings(change(tmp_path), ("encoder", "codec", "pretrain"))
    of_run(read_config(tmp_path))
    assert source_changes(read_config(tmp_path), tmp_path) == []  # it kept no data.json


def test_a_stage_of_which_only_a_repetition_was_trained_has_started(workdir):
    start(workdir, "pretrain-2")
    with pytest.raises(ConfigError, match="unified.transformer.width"):
        change(workdir, "unified.transformer.width=64")
    with pytest.raises(ConfigError, match="add --allow-change"):
        change(workdir, "pretrain.learning_rate=0.5")


@pytest.mark.parametrize("stage", ["g4u", "u4g", "longcap", "reca"])
def test_the_model_is_fixed_once_any_stage_of_it_has_started(workdir, stage):
    start(workdir, stage)
    with pytest.raises(ConfigError, match="unified.transformer.width"):
        change(workdir, "unified.transformer.width=64")


def test_a_history_that_is_cut_is_named(workdir):
    start(workdir, "pretrain")
    store(change(workdir, "pretrain.batch_size=8", allow=True), workdir)
    path = workdir / "config_history.jsonl"
    path.write_text(path.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    with pytest.raises(ConfigError, match="config_history.jsonl is damaged"):
        data_start(workdir, "pretrain", 5, 8)


def test_allowed_changes_are_kept_in_a_history(workdir):
    start(workdir, "encoder", "codec", "pretrain")
    store(change(workdir, "pretrain.steps=7000"), workdir)  # neutral: not in the history
    assert not (workdir / "config_history.jsonl").exists()
    store(change(workdir, "pretrain.learning_rate=0.5", allow=True), workdir)
    store(change(workdir, "pretrain.clip_norm=2", allow=True), workdir)
    text = (workdir / "config_history.jsonl").read_text(encoding="utf-8")
    first, second = map(json.loads, text.splitlines())
    assert first["changes"] == {"pretrain.learning_rate": [0.01, 0.5]}
    assert first["steps"] == {"encoder": 5, "codec": 5, "pretrain": 5} and "time" in first
    assert second["changes"] == {"pretrain.clip_norm": [1.0, 2.0]}
    assert stored(workdir)["pretrain"]["steps"] == 7000


def test_after_a_change_of_the_batch_no_row_is_read_twice(workdir):
    start(workdir, "encoder", "codec", "pretrain")  # all at step 5
    assert data_start(workdir, "pretrain", 9, 4) == 9
    store(change(workdir, "pretrain.batch_size=8", allow=True), workdir)  # from 4
    assert data_start(workdir, "pretrain", 5, 8) == 3  # 5 x 4 = 20 rows: 3 batches of 8
    assert data_start(workdir, "pretrain", 6, 8) == 4
    assert data_start(workdir, "pretrain", 7, 8) == 5
    assert data_start(workdir, "codec", 7, 64) == 7
    (workdir / "pretrain/checkpoints/9").mkdir()
    store(change(workdir, "pretrain.batch_size=2", "pretrain.window_rows=2", allow=True), workdir)
    assert data_start(workdir, "pretrain", 10, 2) == (5 * 4 + 4 * 8 + 2) // 2


def test_a_repeated_stage_counts_its_own_batches_after_a_change(workdir):
    start(workdir, "encoder", "codec", "pretrain")
    (workdir / "pretrain-2/checkpoints/2").mkdir(parents=True)
    store(change(workdir, "pretrain.batch_size=8", allow=True), workdir)  # from 4
    assert data_start(workdir, "pretrain-2", 4, 8) == (2 * 4 + 2 * 8) // 8
    assert data_start(workdir, "pretrain-3", 4, 8) == 4  # it had not begun


def test_a_run_of_an_older_version_is_not_written_again_for_its_missing_keys(workdir):
    config = stored(workdir)
    del config["data"]["packed"], config["sample"]["guidance_interval"]
    text = json.dumps(config)
    (workdir / "config.json").write_text(text, encoding="utf-8")
    store(change(workdir), workdir)
    assert (workdir / "config.json").read_text(encoding="utf-8") == text
    store(change(workdir, "pretrain.steps=7"), workdir)
    assert stored(workdir)["data"]["packed"] == "" and stored(workdir)["pretrain"]["steps"] == 7


def test_what_a_run_read_from_its_autoencoder_does_not_contradict_its_config_file(workdir):
    start(workdir, "encoder", "codec", "pretrain")
    config = stored(workdir)
    config["codec"]["autoencoder"]["facts"] = {"sizes": {"widths": [8, 8]}, "canvas": [2, 2]}
    (workdir / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert open_run(workdir, QUICKSTART, []).codec.autoencoder.path == ""
    kept = change(workdir).codec.autoencoder.facts
    assert kept.sizes.widths == (8, 8) and kept.canvas == (2, 2)


# ---- other versions, damaged files ------------------------------------------------------------


@pytest.mark.parametrize("key", sorted(key for key in LATER if key.split(".")[0] not in OTHERS))
def test_a_run_from_before_a_key_resumes_as_it_was(workdir, key):
    start(workdir, "encoder", "codec", "pretrain")
    config = stored(workdir)
    *groups, name = key.split(".")
    del functools.reduce(dict.__getitem__, groups, config)[name]
    (workdir / "config.json").write_text(json.dumps(config), encoding="utf-8")
    found = functools.reduce(operator.getitem, key.split("."), change(workdir))
    assert (found.to_dict() if key.endswith("facts") else found) == LATER[key]
    found = functools.reduce(operator.getitem, key.split("."), read_config(workdir))
    assert found == LATER[key]


def test_a_run_from_before_there_were_autoencoders_resumes_in_pixels(workdir):
    start(workdir, "codec")
    config = stored(workdir)
    del config["codec"]["autoencoder"]
    (workdir / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert open_run(workdir, QUICKSTART, []).codec.autoencoder.path == ""
    with pytest.raises(ConfigError, match=r"codec.autoencoder.path='', now it is 'vae'"):
        open_run(workdir, QUICKSTART, ["--config.codec.autoencoder.path=vae"])


def damaged(text):
    return {
        "cut": text[:300],
        "empty": "",
        "a list": "[]",
        "a pointer": "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
    }


@pytest.mark.parametrize("kind", ["cut", "empty", "a list", "a pointer"])
def test_a_damaged_configuration_is_named_in_one_line(workdir, kind):
    path = workdir / "config.json"
    path.write_text(damaged(path.read_text(encoding="utf-8"))[kind], encoding="utf-8")
    for attempt in (lambda: change(workdir), lambda: read_config(workdir)):
        with pytest.raises((ConfigError, CheckpointError)) as error:
            attempt()
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_key_of_a_later_version_is_refused_and_a_missing_one_named(workdir):
    config = stored(workdir)
    config["codec"]["from_the_future"] = 1
    (workdir / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="codec.from_the_future.*use the version that wrote it"):
        change(workdir)
    with pytest.raises(CheckpointError, match="codec.from_the_future"):
        read_config(workdir)
    del config["codec"]["from_the_future"], config["codec"]["latent_dim"]
    (workdir / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match="lacks the key codec.latent_dim"):
        change(workdir)


def test_carriage_returns_in_a_stored_configuration_do_no_harm(workdir):
    path = workdir / "config.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert change(workdir).seed == base.get_config().seed
