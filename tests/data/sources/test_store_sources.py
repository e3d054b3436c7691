"""Every kind of source reads from an object store what it reads from a disk."""

from __future__ import annotations

import itertools
import pickle
import shutil

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from data_pipelines.decoding import encode_png
from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sources import index
from data_pipelines.sources.identity import folder_identity, identity_of
from data_pipelines.sources.records import write_records
from data_pipelines.sources.registry import open_source
from tests.data.samples import example
from tests.data.sources.formats import (
    gray,
    png,
    tf_example,
    write_jsonl,
    write_parquet,
    write_shards,
    write_tf_examples,
)
from tests.stores import bucket_of_module, put, running_servers  # noqa: F401 - fixtures
from unicom_jax.core import paths
from unicom_jax.core.paths import as_path

TALK = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "Gray."}]


def write_kind(kind, folder):
    """A small data set of a kind, and what of it `data.source.path` names."""
    folder.mkdir(parents=True)
    for number in range(4):
        (folder / f"{number}.png").write_bytes(png(number))
    rows = [{"image": f"{n}.png", "text": f"gray {n}"} for n in range(4)]
    match kind:
        case "webdataset":
            write_shards(folder, shards=3, samples=2)
            return "s-{000..002}.tar"
        case "parquet":
            for part in range(2):
                columns = {"image": [png(part), png(part + 1)], "caption": ["one", "two"]}
                write_parquet(folder / f"{part}.parquet", columns, group=1)
            return "*.parquet"
        case "jsonl":
            write_jsonl(folder / "list.jsonl", rows)
            return "list.jsonl"
        case "conversations":
            write_jsonl(folder / "talk.jsonl", [{"image": "1.png", "conversations": TALK}] * 2)
            return "talk.jsonl"
        case "interleaved":
            page = {"texts": [None, "gray"], "images": ["1.png", None]}
            write_jsonl(folder / "pages.jsonl", [page] * 2)
            return "pages.jsonl"
        case "text":
            (folder / "words.txt").write_text("a first document\n\nand a second one\n")
            return "words.txt"
        case "folder":
            write_jsonl(folder / "captions.jsonl", [rows[0], "", *rows[1:]])
        case "documents":
            segments = [{"look_at": "2.png"}, {"response": "Gray."}]
            write_jsonl(folder / "documents.jsonl", [{"segments": segments}, {"text": "Words."}])
        case "array_record" | "openmoji":
            write_records(folder / "train", [example(n) for n in range(5)], shards=2)
        case "tf_example":
            one = tf_example(image=[png(3)], caption=[b"gray"])
            write_tf_examples(folder / "a.array_record", one)
            return "*.array_record"
        case "pictures":
            for name in ("b/x.png", "b/a.PNG", "b/.hidden.png", "a.b/c/z.png", "b/notes.txt"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(png(9))
    return ""


KINDS = (
    *("webdataset", "parquet", "jsonl", "conversations", "interleaved"),
    *("text", "folder", "documents", "pictures", "array_record", "openmoji", "tf_example"),
)


def contents(source):
    """All records without their keys, which name the place; pictures as lists."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return value.tolist()
        if hasattr(value, "__dataclass_fields__"):
            return {k: plain(getattr(value, k)) for k in value.__dataclass_fields__ if k != "key"}
        return [plain(item) for item in value] if isinstance(value, tuple) else value

    return [plain(source[index]) for index in range(len(source))]


def options(kind, path):
    more = {"piece": 64} if kind == "text" else {}
    return {
        "kind": kind,
        "path" if kind in ("folder", "documents", "pictures", "openmoji") else "paths": path,
    } | more


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_source_in_a_store_has_the_records_of_the_same_files_on_a_disk(kind, bucket, tmp_path):
    name = write_kind(kind, tmp_path / "data")
    here = open_source(options(kind, f"{tmp_path / 'data'}/{name}".rstrip("/")))
    expected, traits = contents(here), here.traits()
    identity = folder_identity if kind in ("folder", "documents") else identity_of
    looks = identity(here.source)
    address = put(tmp_path / "data", f"{bucket}/{kind}")
    there = open_source(options(kind, f"{address}/{name}".rstrip("/")))
    assert contents(there) == expected
    assert (there.traits() == traits).all()
    assert identity(there.source) == looks  # so data may move into a store
    assert contents(pickle.loads(pickle.dumps(there))) == expected  # as worker processes get it


def test_the_index_of_a_shard_is_kept_beside_it_for_other_machines(bucket, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    write_shards(tmp_path / "data", shards=1, samples=3)
    address = put(tmp_path / "data", f"{bucket}/indexed")
    source = {"kind": "webdataset", "paths": f"{address}/s-000.tar"}
    expected = contents(open_source(source))
    shutil.rmtree(index.cache_folder(index.INDICES))  # another machine has none of it

    def scan(path):
        raise AssertionError("the shard is read again")

    monkeypatch.setattr("data_pipelines.sources.webdataset.scan_tar", scan)
    assert contents(open_source(source)) == expected


def test_a_changed_shard_in_a_store_is_scanned_again(bucket, tmp_path):
    for samples in (2, 3):
        (tmp_path / "data").mkdir()
        write_shards(tmp_path / "data", shards=1, samples=samples)
        address = put(tmp_path / "data", f"{bucket}/changed")
        assert len(open_source({"kind": "webdataset", "paths": address})) == samples


def test_a_picture_that_is_missing_in_a_store_breaks_its_record_alone(bucket, tmp_path):
    (tmp_path / "data").mkdir()
    rows = [{"image": "no.png", "text": "lost"}, {"image": "0.png", "text": "there"}]
    write_jsonl(tmp_path / "data" / "list.jsonl", rows)
    (tmp_path / "data" / "0.png").write_bytes(encode_png(gray(0)))
    address = put(tmp_path / "data", f"{bucket}/missing")
    source = open_source({"kind": "jsonl", "paths": address, "skip_broken": False})
    with pytest.raises(RecordError, match=rf"record 1: cannot read image {bucket}/.*/no.png"):
        source[0]
    assert source[1].captions == ("there",)


def test_a_path_without_files_in_a_store_is_refused_by_name(bucket):
    for path in (f"{bucket}/nothing", f"{bucket}/nothing/*.tar"):
        with pytest.raises(SourceError, match=r"nothing.*: no .tar file there: check the path"):
            open_source({"kind": "webdataset", "paths": path})


def test_a_store_that_cannot_be_reached_is_named(monkeypatch):
    pytest.importorskip("s3fs")
    monkeypatch.setattr("data_pipelines.faults.PAUSES", ())
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    paths._filesystem.cache_clear()
    try:
        with pytest.raises(
            SourceError, match=r"s3://b/list.jsonl: cannot be read \(Could not connect"
        ):
            open_source({"kind": "jsonl", "paths": "s3://b/list.jsonl"})
    finally:
        paths._filesystem.cache_clear()


def test_a_store_whose_package_is_missing_names_it(monkeypatch):
    def lacking(*_, **__):
        raise ImportError("Please install gcsfs")

    monkeypatch.setattr(fsspec, "filesystem", lacking)
    paths._filesystem.cache_clear()
    with pytest.raises(OSError, match=r"gs:// needs gcsfs .*pip install 'unicom_jax\[gcs\]'"):
        as_path("gs://bucket/x").exists()
    monkeypatch.setattr("data_pipelines.faults.PAUSES", ())
    with pytest.raises(SourceError, match=r"gs://bucket/x.tar: cannot be read .*: install it, th"):
        open_source({"kind": "webdataset", "paths": "gs://bucket/x.tar"})
    paths._filesystem.cache_clear()


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    from huggingface_hub.errors import OfflineModeIsEnabled

    class Offline:
        def exists(self, path, **_):
            raise OfflineModeIsEnabled("Cannot reach the Hub.\n\nUnset HF_HUB_OFFLINE.")

        isfile = isdir = exists

    monkeypatch.setattr(paths, "_filesystem", lambda *_: Offline())
    monkeypatch.setattr("data_pipelines.faults.PAUSES", ())
    address = "hf://datasets/o/n/a.parquet"
    with pytest.raises(
        SourceError, match=f"{address}: cannot be read .Cannot reach the Hub.*:"
    ) as e:
        open_source({"kind": "parquet", "paths": address})
    assert "\n" not in str(e.value)


class Hub(MemoryFileSystem):
    """Stands for Hugging Face's file system, which needs a network."""

    protocol, store, pseudo_dirs, cachable = ("hf",), {}, [""], False

    def __init__(self, *args, **kwargs):
        super().__init__()


def test_data_sets_of_the_hub_are_read_by_their_address(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    write_shards(tmp_path / "data", shards=2, samples=2)
    monkeypatch.setattr(fsspec, "filesystem", lambda scheme, **_: {"hf": Hub()}[scheme])
    paths._filesystem.cache_clear()
    address = put(tmp_path / "data", "hf://datasets/owner/gray/data")
    source = open_source({"kind": "webdataset", "paths": f"{address}/s-{{000..001}}.tar"})
    captions = itertools.chain(*(source[number].captions for number in range(4)))
    assert list(captions) == [f"gray {number}" for number in range(4)]
    paths._filesystem.cache_clear()
