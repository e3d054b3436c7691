from __future__ import annotations

import pickle

import grain
import msgpack
import numpy as np
import pytest

from data_pipelines.examples import Edit, Example, Question
from data_pipelines.sources import records


def example(index: int) -> Example:
    noise = np.random.default_rng(index)
    return Example(
        key=f"picture {index}",
        image=noise.integers(0, 256, (8, 9, 3), dtype=np.uint8),
        captions=("größer", "a longer caption 🎈"),
        questions=(Question("how many?", "two", "count"),),
        edits=(Edit("mirror it", noise.integers(0, 256, (5, 6, 3), np.uint8), "move", "mirrored"),),
        thought="first this, then that",
    )


def assert_same(left: Example, right: Example) -> None:
    np.testing.assert_array_equal(left.image, right.image)
    for a, b in zip(left.edits, right.edits, strict=True):
        np.testing.assert_array_equal(a.target, b.target)
        assert (a.instruction, a.kind, a.caption) == (b.instruction, b.kind, b.caption)
    names = ("key", "captions", "questions", "thought")
    assert [getattr(left, n) for n in names] == [getattr(right, n) for n in names]


def test_an_example_survives_its_bytes():
    assert_same(records.decode_example(records.encode_example(example(0)), "here"), example(0))


def test_written_examples_are_read_back_by_index_from_every_shard(tmp_path):
    paths = records.write_records(tmp_path / "train", [example(i) for i in range(7)], shards=3)
    source = records.ArrayRecordSource(tmp_path)
    assert len(paths) == 3 and len(source) == 7
    assert sorted(source[i].key for i in range(7)) == [f"picture {i}" for i in range(7)]
    assert_same(source[0], example(0))
    with pytest.raises(IndexError):
        source[7]


def test_one_shard_keeps_the_order(tmp_path):
    paths = records.write_records(tmp_path / "a", [example(i) for i in range(3)])
    assert [e.key for e in records.read_records(paths)] == ["picture 0", "picture 1", "picture 2"]


def test_the_same_examples_give_the_same_bytes(tmp_path):
    first, second = (
        records.write_records(tmp_path / name, [example(0), example(1)])[0] for name in ("a", "b")
    )
    assert first.read_bytes() == second.read_bytes()


def test_the_source_goes_through_grain_and_pickle(tmp_path):
    records.write_records(tmp_path / "a", [example(0), example(1)])
    source = pickle.loads(pickle.dumps(records.ArrayRecordSource(tmp_path)))
    dataset = grain.MapDataset.source(source).map(lambda e: e.key)
    assert list(dataset) == ["picture 0", "picture 1"]


def test_an_interrupted_write_leaves_no_file(tmp_path):
    def broken():
        yield example(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.write_shards(tmp_path / "a", [[example(1)], broken()])
    assert list(tmp_path.iterdir()) == []


def broken_records():
    content = msgpack.unpackb(records.encode_example(example(0)))
    image = content["image"]
    return {
        "no msgpack": b"\xc1",
        "cut off": records.encode_example(example(0))[:100],
        "other format": msgpack.packb(content | {"format": "example/9"}),
        "image cut off": msgpack.packb(content | {"image": image[: len(image) // 2]}),
        "missing field": msgpack.packb({k: v for k, v in content.items() if k != "captions"}),
        "nothing to learn": msgpack.packb(
            content | {"captions": [], "image": None, "questions": []}
        ),
        "empty caption": msgpack.packb(content | {"captions": ["a", " "]}),
    }


@pytest.mark.parametrize("name", broken_records())
def test_a_broken_record_is_one_line_that_names_file_and_index(name):
    with pytest.raises(records.RecordError, match="a.array_record record 5: ") as caught:
        records.decode_example(broken_records()[name], "a.array_record record 5")
    assert "\n" not in str(caught.value)


def test_a_broken_record_in_a_file_names_its_place_in_that_file(tmp_path, monkeypatch):
    def encode(ex: Example) -> bytes:
        return b"junk" if ex.key == "picture 3" else b""

    monkeypatch.setattr(records, "encode_example", encode)
    records.write_records(tmp_path / "a", [example(i) for i in range(4)], shards=2)
    source = records.ArrayRecordSource(tmp_path)
    with pytest.raises(records.RecordError, match=r"a-00001-of-00002.array_record record 1: "):
        source[3]


@pytest.mark.parametrize("damage", ["cut off", "empty"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    (path,) = records.write_records(tmp_path / "a", [example(0)])
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage == "cut off" else b"")
    with pytest.raises(records.SourceError, match=r"a-00000-of-00001.array_record: .*again") as e:
        records.ArrayRecordSource(path)
    assert "\n" not in str(e.value)


def test_a_path_without_files_is_refused_by_name(tmp_path):
    with pytest.raises(records.SourceError, match=f"{tmp_path}: no .array_record file there"):
        records.ArrayRecordSource(tmp_path)
    with pytest.raises(records.SourceError, match="no paths given"):
        records.ArrayRecordSource([])


def test_two_sets_of_files_in_one_folder_are_not_read_twice(tmp_path):
    (path,) = records.write_records(tmp_path / "a", [example(0)])
    content = path.read_bytes()
    for name in ("a-00000-of-00002", "a-00001-of-00002"):
        (tmp_path / f"{name}.array_record").write_bytes(content)
    message = "holds two sets of files, of-00001 and of-00002, .*delete one set"
    with pytest.raises(records.SourceError, match=message):
        records.ArrayRecordSource(tmp_path)
    assert len(records.ArrayRecordSource(path)) == 1


def test_the_home_directory_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    records.write_records(tmp_path / "data" / "a", [example(0)])
    assert len(records.ArrayRecordSource("~/data")) == 1


def test_a_pattern_of_several_files_is_still_one(tmp_path):
    records.write_records(tmp_path / "a", [example(i) for i in range(4)], shards=4)
    assert len(records.ArrayRecordSource(tmp_path / "a-0000[12]-*")) == 2
