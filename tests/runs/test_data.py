"""What a run keeps of its data: their identity, and the documents of a window."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from data_pipelines import batches
from data_pipelines.batches import unified_loader
from data_pipelines.build import load_or_train_tokenizer
from data_pipelines.faults import SourceError
from tests.data.mixed import entries, mixed_config, write_sources
from tests.tiny import tiny_config
from unicom_jax.config import ConfigError
from unicom_jax.runs import data
from unicom_jax.runs.data import keep_data


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(12):
        Image.fromarray(np.full((32, 32, 3), index, np.uint8)).save(folder / f"{index}.png")
    return write_rows(folder, 12)


def write_rows(folder, count):
    rows = [{"image": f"{index % 12}.png", "text": f"gray {index}"} for index in range(count)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "captions.jsonl").write_text(text, encoding="utf-8")
    return folder


def config_of(folder, **overrides):
    config = tiny_config(data__source__kind="folder", data__source__path=str(folder), **overrides)
    config.pretrain.mixture.update({"visual_qa": 0.0, "edit": 0.0})
    return config


def start(config, workdir):
    return keep_data(config, load_or_train_tokenizer(config, workdir / "tokenizer"), workdir)


@pytest.fixture(autouse=True)
def few_documents(monkeypatch):
    monkeypatch.setattr("data_pipelines.loading.loader.PROBES", 32)


@pytest.fixture
def started(monkeypatch):
    """As if a stage had a checkpoint."""
    monkeypatch.setattr(data, "any_started", lambda workdir: True)


@pytest.mark.usefixtures("started")
def test_the_documents_of_a_window_are_measured_once_and_kept(photos, tmp_path, monkeypatch):
    first = config_of(photos)
    start(first, tmp_path)
    measured = first.pretrain.window_documents
    assert measured > 0

    def differs(stream):
        raise AssertionError("measured again")

    monkeypatch.setattr(batches, "choose_window_documents", differs)
    second = config_of(photos)
    assert start(second, tmp_path) == []
    assert second.pretrain.window_documents == measured
    tokenizer = load_or_train_tokenizer(second, tmp_path / "tokenizer")
    for split in ("train", "eval"):
        loader = unified_loader(second, "pretrain", tokenizer, split)
        assert loader._make.window_documents == measured


@pytest.mark.usefixtures("started")
def test_another_mixture_or_number_has_a_window_of_its_own(photos, tmp_path):
    start(config_of(photos), tmp_path)
    longer = config_of(photos, pretrain__sequence_length=192)
    start(longer, tmp_path)
    assert longer.pretrain.window_documents > 0
    given = config_of(photos, pretrain__window_documents=3)
    start(given, tmp_path)
    assert given.pretrain.window_documents == 3


@pytest.mark.usefixtures("started")
def test_data_that_changed_are_refused_and_it_is_said_how(photos, tmp_path):
    start(config_of(photos), tmp_path)
    write_rows(photos, 14)
    message = (
        r"the data changed since this run was started: captions.jsonl has new rows at its end "
        r"\(12 rows before, 14 now\): .*--config.data.fingerprint=([0-9a-f]{16})$"
    )
    with pytest.raises(ConfigError, match=message) as caught:
        start(config_of(photos), tmp_path)
    allowed = str(caught.value)[-16:]
    consent = config_of(photos, data__fingerprint=allowed)
    assert start(consent, tmp_path) == [
        "captions.jsonl has new rows at its end (12 rows before, 14 now)"
    ]
    assert start(config_of(photos), tmp_path) == []  # it is the run's data now
    write_rows(photos, 15)
    with pytest.raises(ConfigError, match="the data changed"):
        start(consent, tmp_path)  # consent was to those data alone


@pytest.mark.usefixtures("started")
def test_moved_data_are_the_same_and_keep_their_windows(photos, tmp_path, monkeypatch):
    start(config_of(photos), tmp_path)
    monkeypatch.setattr(batches, "choose_window_documents", lambda stream: pytest.fail("measured"))
    assert start(config_of(photos.rename(tmp_path / "elsewhere")), tmp_path) == []


def test_a_fingerprint_pins_the_data_of_a_new_run(photos, tmp_path):
    with pytest.raises(ConfigError, match="is not that of the data at .*photos, which have"):
        start(config_of(photos, data__fingerprint="0" * 16), tmp_path)


def test_a_finished_run_needs_no_data(photos, tmp_path, monkeypatch):
    config = config_of(photos)
    monkeypatch.setattr(data, "stage_steps", lambda workdir, stage: [config[stage].steps])
    monkeypatch.setattr(data, "is_import", lambda directory, step: False)
    tokenizer = load_or_train_tokenizer(config, tmp_path / "tokenizer")
    (photos / "captions.jsonl").unlink()
    assert keep_data(config, tokenizer, tmp_path) == []
    monkeypatch.setattr(data, "stage_steps", lambda workdir, stage: [])
    with pytest.raises(SourceError, match="holds neither captions.jsonl"):
        keep_data(config, tokenizer, tmp_path)


def test_stages_on_packed_rows_need_no_data(photos, tmp_path):
    config = config_of(photos, data__packed="rows", stages=("pretrain",))
    tokenizer = load_or_train_tokenizer(config_of(photos), tmp_path / "tokenizer")
    (photos / "captions.jsonl").unlink()
    assert keep_data(config, tokenizer, tmp_path) == []
    assert config.pretrain.window_documents == 0


@pytest.mark.usefixtures("started")
def test_a_damaged_file_is_one_line(photos, tmp_path):
    (tmp_path / data.DATA).write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="data.json is not JSON .*; restore it from a copy"):
        start(config_of(photos), tmp_path)


def test_before_a_checkpoint_other_data_are_taken(photos, tmp_path):
    start(config_of(photos), tmp_path)
    write_rows(photos, 14)
    assert start(config_of(photos), tmp_path) == []


def test_the_other_processes_read_what_the_first_one_has_measured(photos, tmp_path, monkeypatch):
    start(config_of(photos), tmp_path)
    tokenizer = load_or_train_tokenizer(config_of(photos), tmp_path / "tokenizer")
    monkeypatch.setattr(batches, "choose_window_documents", lambda stream: pytest.fail("measured"))
    other = config_of(photos)
    keep_data(other, tokenizer, tmp_path, first=False)
    assert other.pretrain.window_documents > 0
    write_rows(photos, 14)
    with pytest.raises(ConfigError, match="this process sees other data than process 0: captions"):
        keep_data(other, tokenizer, tmp_path, first=False)


# ---- several sources ---------------------------------------------------------------------------


@pytest.fixture
def several(tmp_path):
    paths = write_sources(tmp_path / "sources")
    return lambda **overrides: mixed_config(entries(paths), stages=("pretrain",), **overrides)


@pytest.mark.usefixtures("started")
def test_the_source_that_changed_is_named(several, tmp_path):
    start(several(), tmp_path)
    assert start(several(), tmp_path) == []
    words = tmp_path / "sources" / "words" / "documents.jsonl"
    words.write_text(words.read_text(encoding="utf-8") + '{"text": "more"}\n', encoding="utf-8")
    change = "source words: documents.jsonl has new rows at its end (40 rows before, 41 now)"
    with pytest.raises(ConfigError, match="the data changed since") as caught:
        start(several(), tmp_path)
    assert f"started: {change}: restore the old data" in str(caught.value)
    assert start(several(data__fingerprint=str(caught.value)[-16:]), tmp_path) == [change]
    fewer = several()
    fewer.data.sources = fewer.data.sources[1:]
    with pytest.raises(ConfigError, match="source photos: captions.jsonl is missing: restore"):
        start(fewer, tmp_path)


@pytest.mark.usefixtures("started")
def test_the_length_of_documents_is_measured_once_and_kept(several, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "TOKEN_PROBES", 4)
    first = several(data__weight_unit="tokens")
    start(first, tmp_path)
    measured = dict(first.pretrain.document_tokens)
    assert measured.keys() > {"words/document", "photos/text_to_image"}
    for name in ("choose_window_documents", "document_tokens"):
        monkeypatch.setattr(batches, name, lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(data, "document_tokens", lambda *_: pytest.fail("measured"))
    second = several(data__weight_unit="tokens")
    tokenizer = load_or_train_tokenizer(second, tmp_path / "tokenizer")
    keep_data(second, tokenizer, tmp_path, first=False)
    assert second.pretrain.document_tokens == first.pretrain.document_tokens
    for split in ("train", "eval"):
        one, two = (unified_loader(c, "pretrain", tokenizer, split) for c in (first, second))
        np.testing.assert_array_equal(one.at(0).tokens, two.at(0).tokens)
