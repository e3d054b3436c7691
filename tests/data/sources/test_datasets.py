"""Data sets that `datasets.load_dataset` finds: in a folder, or by their name on the Hub."""

from __future__ import annotations

import pickle
import sys

import pytest

from data_pipelines.batches import picture_loader, row_facts
from data_pipelines.build import data_identity, evaluates_on_training_data, source_options
from data_pipelines.faults import SourceError
from data_pipelines.sources.identity import fingerprint
from data_pipelines.sources.parquet import DatasetsSource
from data_pipelines.sources.registry import open_source
from data_pipelines.sources.split import EVALUATION, TRAIN
from tests.data.samples import tokenizer
from tests.data.sources.formats import png, read_all, write_jsonl, write_parquet
from tests.tiny import tiny_config

ROWS = 10


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        package = pytest.importorskip("datasets")
        patch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        package.disable_progress_bars()
        yield package


@pytest.fixture(scope="module")
def folder(datasets, tmp_path_factory):
    """A folder with two splits, as data sets on the Hub have them."""
    folder = tmp_path_factory.mktemp("gray")
    for split, start, count in (("train", 0, ROWS), ("test", 50, 3)):
        values = range(start, start + count)
        columns = {"image": [png(n) for n in values], "caption": [f"gray {n}" for n in values]}
        write_parquet(folder / f"{split}-00000-of-00001.parquet", columns)
    return folder


def config_of(folder, **options):
    given = {"kind": "datasets", "path": str(folder), **options}
    return tiny_config(**{f"data__source__{key}": value for key, value in given.items()})


def levels(config, split):
    return [level for level, _ in read_all(open_source(source_options(config, split, False)))]


def test_a_split_of_a_data_set_is_read_by_its_name(folder):
    source = pickle.loads(pickle.dumps(DatasetsSource(str(folder), "test")))
    assert read_all(source) == [(n, (f"gray {n}",)) for n in (50, 51, 52)]
    assert source.traits().tolist() == [0] * 3
    some = read_all(DatasetsSource(str(folder), "train[:20%]"))
    assert some == [(n, (f"gray {n}",)) for n in (0, 1)]


def test_evaluation_reads_a_split_of_its_own_or_records_that_are_held_out(folder):
    config = config_of(folder, held_out=0.3)
    trained, held_out = levels(config, TRAIN), levels(config, EVALUATION)
    assert trained and held_out and sorted(trained + held_out) == list(range(ROWS))
    config.data.source.eval_split = "test"
    assert levels(config, TRAIN) == list(range(ROWS))
    assert levels(config, EVALUATION) == [50, 51, 52]
    config.data.source.held_out = 0.0
    assert not evaluates_on_training_data(config)


def test_a_configured_data_set_makes_batches_and_has_an_identity(folder):
    config = config_of(folder)
    assert picture_loader(config, "codec", tokenizer()).at(0).patches.any()
    identity, _ = data_identity(config)[""]
    assert len(identity) == 1 and len(fingerprint(identity)) == 16
    facts = row_facts(config, "pretrain")["source"]
    assert facts["path"] == folder.name and facts["part"] == "train"


def test_columns_are_named_and_a_missing_one_is_refused(folder):
    assert DatasetsSource(str(folder), captions="caption")[0].captions == ("gray 0",)
    with pytest.raises(SourceError, match=r"no column 'title': set data.source.captions to one of"):
        DatasetsSource(str(folder), captions="title")


def test_a_folder_of_pictures_is_read_as_datasets_reads_it(datasets, tmp_path):
    rows = [{"file_name": f"{n}.png", "text": f"gray {n}"} for n in range(3)]
    for n in range(3):
        (tmp_path / f"{n}.png").write_bytes(png(n))
    write_jsonl(tmp_path / "metadata.jsonl", rows)
    found = read_all(DatasetsSource(str(tmp_path)))
    assert sorted(found) == [(n, (f"gray {n}",)) for n in range(3)]


@pytest.mark.parametrize("options", [{"part": "dev"}, {"subset": "small"}])
def test_what_a_data_set_does_not_have_is_refused_in_one_line(folder, options):
    message = r"cannot be opened \(.*\): check data.source.path, subset, split and revision"
    with pytest.raises(SourceError, match=message) as caught:
        DatasetsSource(str(folder), **options)
    assert "\n" not in str(caught.value)


def test_a_name_without_a_network_is_refused_in_one_line(datasets, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    message = r"nobody/nothing, split 'train': cannot be opened \(.*\): check .* connection to the"
    with pytest.raises(SourceError, match=message) as caught:
        DatasetsSource("nobody/nothing")
    assert "\n" not in str(caught.value)


def test_a_name_without_the_package_is_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match=r"can read it: pip install 'unicom_jax\[datasets\]'"):
        DatasetsSource("org/name")


@pytest.mark.parametrize("path", ["org/name", "hf://datasets/org/name"])
def test_a_name_is_looked_up_on_the_hub_with_its_subset_split_and_revision(
    datasets, monkeypatch, path
):
    asked = []

    def load(name, subset, **how):
        asked.append((name, subset, how))
        return datasets.Dataset.from_dict({"image": [png(7)], "caption": ["gray 7"]})

    monkeypatch.setattr(datasets, "load_dataset", load)
    options = {"path": path, "subset": "small", "revision": "v1", "part": "train[:5%]"}
    source = open_source({"kind": "datasets", **options})
    assert read_all(source) == [(7, ("gray 7",))]
    assert asked == [("org/name", "small", {"split": "train[:5%]", "revision": "v1"})]


def test_the_options_of_a_name_do_nothing_for_other_kinds():
    config = tiny_config(data__source__kind="parquet", data__source__subset="small")
    with pytest.raises(SourceError, match=r"subset='small' does nothing for kind 'parquet'"):
        source_options(config, TRAIN, False)
