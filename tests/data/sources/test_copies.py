"""Local copies of data in object stores whose libraries read only local files."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import chex
import pytest

from data_pipelines.build import load_or_train_tokenizer
from data_pipelines.faults import SourceError
from data_pipelines.sources import copies, in_use
from data_pipelines.sources.copies import local_files, local_folder
from data_pipelines.sources.parquet import ParquetSource
from data_pipelines.sources.records import ArrayRecordSource, write_records
from data_pipelines.sources.registry import open_source
from data_pipelines.sources.tfds import TfdsSource, record_files
from tests.data.loading.test_rows import batches, small
from tests.data.packed import pack
from tests.data.samples import example, tokenizer
from tests.data.sources.formats import png, read_all
from tests.data.sources.test_sources import COCO, coco_features, tiny_tfds
from tests.stores import bucket_of_module, put, running_servers  # noqa: F401 - fixtures
from unicom_jax.core import paths
from unicom_jax.core.paths import as_path, cache_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(in_use, "HELD", {})
    monkeypatch.setattr("data_pipelines.faults.PAUSES", ())


@pytest.fixture
def address(bucket, tmp_path, request):
    write_records(tmp_path / "data" / "x", [example(n) for n in range(4)], shards=2)
    return put(tmp_path / "data", f"{bucket}/{request.node.name.partition('[')[0]}")


def end():
    """Gives up what this process holds, as its end does."""
    while in_use.HELD:
        os.close(in_use.HELD.popitem()[1])


def test_files_are_copied_once_with_the_traits_beside_them(address, monkeypatch, caplog):
    first = ArrayRecordSource(address)
    assert f"{address}: copying 4 files" in caplog.text and "MiB, to" in caplog.text
    assert all(path.startswith(str(cache_folder("copies"))) for path in first.paths)
    monkeypatch.setattr(copies, "_fetch_file", None)  # nothing is fetched again
    again = ArrayRecordSource(address)
    assert again.paths == first.paths and again.may_lack
    assert [again[n].key for n in range(4)] == [first[n].key for n in range(4)]


def test_a_file_that_changes_makes_another_copy_and_the_unused_one_goes(address, tmp_path):
    old = ArrayRecordSource(address).paths
    write_records(tmp_path / "new" / "x", [example(n) for n in range(6)], shards=2)
    put(tmp_path / "new", address)
    new = ArrayRecordSource(address)
    assert len(new) == 6 and set(new.paths).isdisjoint(old)
    assert len(ArrayRecordSource(old)) == 4  # this process reads them
    end()
    assert len(ArrayRecordSource(address)) == 6
    with pytest.raises(SourceError, match="no .array_record file there"):
        ArrayRecordSource(old)


def test_a_copy_that_was_interrupted_is_continued(address, monkeypatch):
    monkeypatch.setattr(copies, "COPIES_AT_ONCE", 1)  # one after the other
    fetch, fetched = copies._fetch_file, []

    def killed(where, about, target):
        if "x-00001" in where:
            raise KeyboardInterrupt
        fetch(where, about, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(copies, "_fetch_file", killed)
        ArrayRecordSource(address)
    (folder,) = (file.parent for file in in_use.HELD)
    (folder / ".x.1.part").write_bytes(b"half")  # left by a kill
    monkeypatch.setattr(
        copies, "_fetch_file", lambda *given: fetched.append(given[0]) or fetch(*given)
    )
    assert len(ArrayRecordSource(address)) == 4
    assert not (folder / ".x.1.part").exists()
    assert f"{address}/x-00001-of-00002.array_record" in fetched
    assert f"{address}/x-00000-of-00002.array_record" not in fetched


def test_a_damaged_copy_is_refused_and_none_is_left(address, monkeypatch):
    files = paths.filesystem(address)
    monkeypatch.setattr(
        files, "get_file", lambda source, target: copies.pathlib.Path(target).write_bytes(b"short")
    )
    with pytest.raises((SourceError, OSError), match="incomplete or damaged"):
        ArrayRecordSource(address)
    assert not [path for path in cache_folder("copies").rglob("*x-*") if path.is_file()]


def test_a_copy_that_was_cut_short_later_is_replaced(address):
    """Also where other copies have hard links to the same file."""
    first = Path(ArrayRecordSource(address).paths[0])
    more = as_path(address) / "more.array_record"
    more.write_bytes(first.read_bytes())
    second = Path(ArrayRecordSource(address).paths[1])
    assert second.samefile(first)
    whole = first.read_bytes()
    second.write_bytes(b"short")
    assert len(ArrayRecordSource(address)) == 6 and second.read_bytes() == whole
    assert len(ArrayRecordSource(f"{address}/x-*")) == 4 and first.read_bytes() == whole


def test_a_copy_for_which_the_disk_has_no_space_is_refused_before_it_begins(address, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(copies.RESERVE + 1))
    message = r"a copy on this machine needs .* MiB, and the disk of .*: delete copies there"
    with pytest.raises(SourceError, match=message):
        ArrayRecordSource(address)


def test_only_new_files_are_copied_and_other_choices_of_files_stay(address, monkeypatch):
    """Another pattern, and a folder to which a file is added."""
    fetch, fetched = copies._fetch_file, []
    monkeypatch.setattr(
        copies, "_fetch_file", lambda *given: fetched.append(given[0]) or fetch(*given)
    )
    whole = ArrayRecordSource(address)
    one = ArrayRecordSource(f"{address}/x-00000*")
    assert len(fetched) == 4 and one.paths[0] != whole.paths[0]
    files = as_path(address)
    (files / "more.array_record").write_bytes(
        (files / "x-00000-of-00002.array_record").read_bytes()
    )
    assert len(ArrayRecordSource(address)) == 6 and len(fetched) == 5
    end()
    ArrayRecordSource(f"{address}/more*")
    assert len(ArrayRecordSource(whole.paths)) == 4 and len(ArrayRecordSource(one.paths)) == 2


def test_a_folder_of_another_kind_is_not_copied(address):
    for source in ({"kind": "tfds", "name": address}, {"kind": "openmoji", "path": address}):
        with pytest.raises(SourceError, match="holds no .*: check data.source.kind and the path"):
            open_source(source)
    assert not cache_folder("copies").exists()


def test_a_folder_or_file_that_does_not_exist_in_a_store_is_named(bucket):
    with pytest.raises(SourceError, match="nothing: no such folder: check the path"):
        local_folder(f"{bucket}/nothing")
    with pytest.raises(SourceError, match="nothing/a: no such file: check the path"):
        local_files([f"{bucket}/nothing/a"])


def test_a_file_that_changes_while_it_is_copied_is_refused_and_not_kept(address, monkeypatch):
    """Even where its size is the same: the copy would be of a state that no listing has shown."""
    files, name = paths.filesystem(address), f"{address}/x-00001-of-00002.array_record"
    whole = files.cat_file(name)
    get = type(files).get_file

    def changed(source, target):
        if source == name:
            files.pipe_file(name, whole[:-1] + bytes([whole[-1] ^ 1]))
        get(files, source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files, "get_file", changed)
        with pytest.raises(SourceError, match="x-00001.*: was changed while it was copied"):
            ArrayRecordSource(address)
    assert not list(cache_folder("copies").rglob("x-00001*.array_record"))
    files.pipe_file(name, whole)
    assert len(ArrayRecordSource(address)) == 4


def test_a_cache_that_cannot_be_written_is_named_with_the_way_out(address, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    message = "cannot be copied to .*/file/unicom_jax.*Not a directory.: set XDG_CACHE_HOME to"
    with pytest.raises(SourceError, match=message):
        open_source({"kind": "array_record", "paths": address})


def test_a_complete_copy_in_a_cache_that_is_only_read_is_used(address, monkeypatch):
    first = ArrayRecordSource(address).paths
    monkeypatch.setattr(copies.os, "access", lambda path, mode: False)
    monkeypatch.setattr(copies, "_alone", None)  # nothing is locked or written
    assert ArrayRecordSource(address).paths == first


@pytest.mark.parametrize(
    "error, words",
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left.*free space on the disk"),
        (PermissionError(errno.EACCES, "Access Denied"), "Access Denied"),
    ],
)
def test_why_a_file_was_not_copied_is_said_with_both_places(address, monkeypatch, error, words):
    def refused(source, target):
        raise error

    monkeypatch.setattr(paths.filesystem(address), "get_file", refused)
    with pytest.raises(SourceError, match=rf"{address}/x-.*, copied to .*copies/.*{words}"):
        ArrayRecordSource(address)


def test_a_process_says_that_it_waits_for_another_ones_copy(address, caplog):
    ArrayRecordSource(address)
    (top,) = {file.parent.parent for file in in_use.HELD}
    handle = os.open(top / copies.LOCK, os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ArrayRecordSource, address)
        while "another process copies it; waiting" not in caplog.text:
            assert not waiting.done()
        os.close(handle)
        assert len(waiting.result()) == 4


def test_a_name_of_a_file_and_of_a_folder_is_refused():
    about = {"a": {"size": 1}, "a/b": {"size": 1}}
    with pytest.raises(SourceError, match="data/a: is a file and a folder: rename one of them"):
        copies._copied("s3://bucket/data", about, about)


def test_a_name_that_leads_out_of_the_folder_is_refused():
    about = {"../x": {"size": 1}}
    with pytest.raises(SourceError, match=r"\.\./x: no name for a file"):
        copies._copied("s3://bucket/data", about, about)


def test_a_data_set_of_tfds_in_a_store_is_read(bucket, tmp_path):
    directory = tiny_tfds(tmp_path / "tfds", coco_features, COCO[:1])
    expected = read_all(TfdsSource(directory))
    address = put(Path(directory), f"{bucket}/coco/1.0.0")
    assert read_all(TfdsSource(address)) == expected and record_files(address)


def test_what_datasets_saved_in_a_store_is_read(bucket, tmp_path):
    package = pytest.importorskip("datasets")
    rows = {"image": [png(n) for n in range(3)], "caption": ["a", "b", "c"]}
    package.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    address = put(tmp_path / "saved", f"{bucket}/saved")
    assert read_all(ParquetSource(address)) == [(0, ("a",)), (1, ("b",)), (2, ("c",))]


def test_packed_rows_in_a_store_are_the_rows_of_a_disk(bucket, tmp_path):
    config, words = small(), tokenizer()
    here = pack(config, words, tmp_path / "packed")
    expected = batches(config, words, here).at(1)
    packed = put(here, f"{bucket}/packed")
    chex.assert_trees_all_equal(batches(config, words, packed).at(1), expected)
    found = load_or_train_tokenizer(config, None)  # the one beside the rows
    assert found.fingerprint() == words.fingerprint()
