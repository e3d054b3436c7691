"""What is held out is never trained on, nothing is lost, and no run decides otherwise."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from data_pipelines.build import evaluates_on_training_data, open_examples, source_options
from data_pipelines.faults import SourceError
from data_pipelines.sources.chosen import Ascending
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.records import write_records
from data_pipelines.sources.registry import open_source
from data_pipelines.sources.split import EVALUATION, TRAIN, SplitSource, held_out, split_source
from tests.tiny import tiny_config

RECORDS = 40
SHARE = 0.25


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """The same records as a folder and as two ArrayRecord files, by kind of source."""
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(RECORDS):
        Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(folder / f"{index}.png")
    rows = [{"image": f"{index}.png", "text": f"gray {index}"} for index in range(RECORDS)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    records = tmp_path_factory.mktemp("records")
    write_records(records / "all", FolderSource(folder), shards=2)
    return {"folder": folder, "array_record": records}


def config_of(kind, paths, **overrides):
    return tiny_config(
        data__source__kind=kind,
        data__source__path=str(paths[kind]),
        data__source__held_out=SHARE,
        **overrides,
    )


def captions(config, split) -> list[str]:
    examples = open_examples(config, split)
    return [examples[index].captions[0] for index in range(len(examples))]


@pytest.mark.parametrize("kind", ["folder", "array_record"])
def test_the_two_splits_are_disjoint_and_together_everything(paths, kind):
    config = config_of(kind, paths)
    train, evaluation = captions(config, TRAIN), captions(config, EVALUATION)
    assert train and evaluation
    assert sorted(train + evaluation) == sorted(f"gray {index}" for index in range(RECORDS))


def test_seed_and_stage_do_not_move_a_record(paths):
    one, other = config_of("folder", paths), config_of("folder", paths, seed=7)
    assert captions(one, EVALUATION) == captions(other, EVALUATION)


def test_the_held_out_records_are_the_same_on_every_machine():
    assert np.flatnonzero(held_out(40, 0.25)).tolist() == [2, 4, 6, 8, 18, 31, 32, 33, 37]


def test_records_added_behind_the_others_move_none_of_them():
    np.testing.assert_array_equal(held_out(1000, 0.1)[:600], held_out(600, 0.1))


def test_a_larger_share_takes_nothing_back():
    small, large = held_out(1000, 0.1), held_out(1000, 0.3)
    assert np.all(large[small]) and large.sum() > small.sum()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_about_the_wanted_share_is_held_out_also_of_every_kth_record(share):
    chosen = held_out(40_000, share)
    assert abs(chosen.mean() - share) < 0.01
    for period in (2, 3, 10):
        assert abs(chosen[::period].mean() - share) < 0.02


def test_a_broken_record_is_replaced_by_one_of_its_own_split(tmp_path):
    """SkipBroken takes the next record; it must not be one of the other side."""
    rows = [{"image": f"{index}.png", "text": f"gray {index}"} for index in range(RECORDS)]
    train = np.flatnonzero(~held_out(RECORDS, SHARE))
    evaluation = set(np.flatnonzero(held_out(RECORDS, SHARE)).tolist())
    broken = next(int(i) for i in train if int(i) + 1 in evaluation)
    for index in range(RECORDS):
        if index != broken:
            Image.fromarray(np.full((8, 8, 3), index, np.uint8)).save(tmp_path / f"{index}.png")
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = captions(config_of("folder", {"folder": tmp_path}), TRAIN)
    assert len(read) == len(train)
    assert not {f"gray {index}" for index in evaluation} & set(read)


def test_with_a_share_of_zero_both_splits_are_everything(paths):
    config = config_of("folder", paths)
    config.data.source.held_out = 0.0
    assert len(captions(config, TRAIN)) == len(captions(config, EVALUATION)) == RECORDS


def test_tfds_is_split_by_name():
    named = {"kind": "tfds", "path": "coco", "eval_split": "test"}
    config = tiny_config(**{f"data__source__{key}": value for key, value in named.items()})
    splits = [source_options(config, split, False)["split"] for split in (TRAIN, EVALUATION)]
    assert splits == ["train", "test"]


def test_the_features_of_a_tfds_data_set_can_be_named():
    config = tiny_config(data__source__kind="tfds", data__source__path="coco")
    found = source_options(config, TRAIN, False)
    assert (found["image"], found["captions"]) == ("image", None)
    config.data.source.update({"image": "photo", "captions": "title"})
    named = source_options(config, TRAIN, False)
    assert (named["image"], named["captions"]) == ("photo", "title")


@pytest.mark.parametrize(
    ("source", "on_training_data"),
    [
        ({"kind": "scenes"}, False),
        ({"kind": "openmoji"}, False),
        ({"kind": "folder"}, False),
        ({"kind": "folder", "held_out": 0.0}, True),
        ({"kind": "array_record", "held_out": 0.0}, True),
        ({"kind": "tfds"}, True),
        ({"kind": "tfds", "eval_split": "train"}, True),
        ({"kind": "tfds", "eval_split": "test"}, False),
    ],
)
def test_it_is_known_when_nothing_was_held_out(source, on_training_data):
    config = tiny_config()
    config.data.source.update(source)
    assert evaluates_on_training_data(config) == on_training_data


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("split", [TRAIN, EVALUATION])
def test_a_share_that_is_none_is_refused(paths, share, split):
    options = {"kind": "folder", "path": paths["folder"], "split": split, "held_out": share}
    with pytest.raises(
        SourceError, match=r"held_out=.* is not a share in \[0, 1\): set it to 0.05"
    ):
        open_source(options)


@pytest.mark.parametrize("split", [TRAIN, EVALUATION])
@pytest.mark.parametrize(
    ("share", "message"),
    [
        (0.001, "held_out=0.001 leaves no record of 8 to the eval split: raise it, or set it to 0"),
        (0.999, "held_out=0.999 leaves no record of 8 to the train split: lower it, or set it"),
    ],
)
def test_a_split_without_records_is_refused_before_training(split, share, message):
    with pytest.raises(SourceError, match=message):
        split_source(range(8), split, share)


def test_an_unknown_split_is_named():
    with pytest.raises(SourceError, match="split 'evil' is unknown: choose train or eval"):
        split_source(range(8), "evil", 0.5)


def test_an_index_behind_the_last_record_ends_the_source():
    assert list(SplitSource(range(10), np.array([2, 5]), TRAIN)) == [2, 5]
    with pytest.raises(IndexError, match=r"index -1 is not in \[0, 2\)"):
        SplitSource(range(10), np.array([2, 5]), TRAIN)[-1]


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("openmoji", "held_out", 0.2),
        ("tfds", "held_out", 0.0),
        ("folder", "split", "test"),
        ("folder", "eval_split", "test"),
        ("array_record", "captions", "title"),
        ("array_record", "image", "photo"),
        ("scenes", "path", "photos"),
    ],
)
def test_an_option_that_the_source_does_not_read_is_refused(kind, key, value):
    config = tiny_config(data__source__kind=kind)
    config.data.source[key] = value
    message = rf"data.source.{key}={value!r} does nothing for kind '{kind}', only for .*: set it to"
    with pytest.raises(SourceError, match=message):
        source_options(config, TRAIN, False)


def test_workers_map_a_large_choice_instead_of_being_sent_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    mask = np.random.default_rng(0).random(2_000_000) < 0.3
    choice = Ascending(mask)
    sent = pickle.dumps(choice)
    assert pickle.dumps(choice) == sent and len(sent) < 20_000
    assert len(list(tmp_path.rglob("shared-*.npy"))) == 1
    arrived = pickle.loads(sent)
    np.testing.assert_array_equal(arrived.mask(), mask)
    assert [arrived[rank] for rank in (0, 7, len(arrived) - 1)] == [
        choice[rank] for rank in (0, 7, len(choice) - 1)
    ]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "full"))
    monkeypatch.setattr("data_pipelines.sources.shared.store", lambda *_: False)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(choice)).mask(), mask)
