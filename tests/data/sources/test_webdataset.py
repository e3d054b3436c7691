"""Tar shards: right samples in the right order, whatever happens to the shards and their index."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import threading
import time

import numpy as np
import pytest

from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sequences.mixture import entries_of
from data_pipelines.sources import index as indices
from data_pipelines.sources import open_files, webdataset
from data_pipelines.sources.broken import read_or_next
from data_pipelines.sources.files import expand_braces, find_files
from data_pipelines.sources.webdataset import WebDatasetSource
from tests.data.sources.formats import gray, png, read_all, write_shards, write_tar
from tests.data.sources.test_faults import files_left

EXPECTED = [(number, (f"gray {number}",)) for number in range(12)]


@pytest.fixture
def shards(tmp_path):
    return write_shards(tmp_path, 3, 4)


@pytest.fixture
def scans(monkeypatch):
    """The names of the shards that are scanned."""
    found, scan = [], webdataset.scan_tar
    monkeypatch.setattr(
        webdataset, "scan_tar", lambda path: found.append(os.path.basename(path)) or scan(path)
    )
    return found


@pytest.mark.parametrize("pattern", ["", "*.tar", "s-{000..002}.tar", "s-00{0,1,2}.tar"])
def test_samples_come_in_the_order_of_the_shards(shards, tmp_path, pattern):
    assert read_all(WebDatasetSource(tmp_path / pattern)) == EXPECTED


def test_a_source_can_be_sent_to_a_worker_without_its_index(shards, tmp_path):
    sent = pickle.dumps(WebDatasetSource(tmp_path))
    assert len(sent) < 2000
    assert read_all(pickle.loads(sent)) == EXPECTED


def test_a_sample_has_the_texts_questions_and_edits_of_its_json(tmp_path):
    row = {
        "caption": "a cat",
        "questions": [{"question": "what?", "answer": "a cat"}],
        "edits": [{"instruction": "shave it", "target": "bald.png"}],
        "url": "http://example.com",
        "image": "of another data set",
    }
    files = {"x/a.jpg": png(3), "x/a.bald.PNG": png(4), "x/a.json": row, "x/a.txt": "less"}
    files |= {"x/b.c.cls": "1", "x/b.webp": png(5), "x/._b.webp": b"of a Mac"}
    source = WebDatasetSource(write_tar(tmp_path / "a.tar", files))
    first, second = source[0], source[1]
    assert (first.captions, first.questions[0].answer) == (("a cat",), "a cat")
    np.testing.assert_array_equal(first.edits[0].target, gray(4))
    assert (second.captions, int(second.image[0, 0, 0])) == ((), 5)
    assert source.traits().tolist() == [1 + 2, 16]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT, tarfile.USTAR_FORMAT])
def test_long_names_and_folders_are_read_in_every_form_of_tar(tmp_path, form):
    folder = "f" * 90
    names = [f"{folder}/{'n' * 60}{number}" for number in range(3)]
    if form != tarfile.USTAR_FORMAT:
        names = [name + "é" * 40 for name in names]
    with tarfile.open(tmp_path / "s.tar", "w", format=form) as tar:
        directory = tarfile.TarInfo(folder)
        directory.type = tarfile.DIRTYPE
        tar.addfile(directory)
        for number, name in enumerate(names):
            for suffix, data in ((".png", png(number)), (".txt", b"gray %d" % number)):
                member = tarfile.TarInfo(name + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    source = WebDatasetSource(tmp_path)
    assert read_all(source) == EXPECTED[:3]
    assert source[1].key.endswith(names[1])


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.png": png(1)[:40], "a.txt": "x"}, "cannot read image"),
        ({"a.png": png(1), "a.json": "{"}, "not JSON"),
        ({"a.png": png(1), "a.txt": b"\xff"}, "not UTF-8"),
        ({"a.cls": "1"}, "empty caption"),
        (
            {"a.png": png(1), "a.json": {"edits": [{"instruction": "x", "target": "b.png"}]}},
            "b.png",
        ),
    ],
)
def test_a_broken_sample_is_named_and_another_takes_its_place(tmp_path, files, reason):
    path = write_tar(tmp_path / "s.tar", files | {"b.png": png(9), "b.txt": "whole"})
    source = WebDatasetSource(path)
    with pytest.raises(RecordError, match=rf"s.tar a: .*{reason}"):
        source[0]
    example, skipped = read_or_next(source, 0)
    assert (example.captions, skipped) == (("whole",), 1)


# ---- the index --------------------------------------------------------------------------------


def test_a_shard_is_scanned_once(shards, tmp_path, scans):
    for _ in range(2):
        WebDatasetSource(tmp_path)
    assert sorted(scans) == ["s-000.tar", "s-001.tar", "s-002.tar"]
    assert read_all(WebDatasetSource(shards[1])) == EXPECTED[4:8] and len(scans) == 3


def test_a_shard_that_changed_is_scanned_again_and_its_old_index_goes(shards, tmp_path, scans):
    WebDatasetSource(tmp_path)
    write_tar(shards[1], {"x.png": png(77), "x.txt": "new"})
    expected = [*EXPECTED[:4], (77, ("new",)), *EXPECTED[8:]]
    assert read_all(WebDatasetSource(tmp_path)) == expected
    assert scans[3:] == ["s-001.tar"]
    assert len(list(tmp_path.glob(".s-001.tar.*"))) == 1


def test_a_shard_of_the_same_size_that_was_replaced_by_an_older_one_is_noticed(tmp_path, scans):
    path = write_tar(tmp_path / "s.tar", {"a.png": png(1), "b.png": png(2)})
    assert len(WebDatasetSource(path)) == 2
    write_tar(path, {"a.png": png(1), "a.txt": png(2)})
    os.utime(path, (1, 1))
    assert len(WebDatasetSource(path)) == 1


def test_the_index_of_a_folder_that_cannot_be_written_to_is_kept_in_the_cache_folder(
    shards, tmp_path, scans, cache, monkeypatch
):
    store = indices.store

    def read_only(file, *arguments):
        return file.parent != tmp_path and store(file, *arguments)

    monkeypatch.setattr(indices, "store", read_only)
    for _ in range(2):
        assert read_all(WebDatasetSource(tmp_path)) == EXPECTED
    assert len(scans) == 3 and not list(tmp_path.glob(".*"))
    assert len(list(cache.rglob("*.npy"))) == 3 + 2  # of each shard, and the joined one


def test_where_no_index_can_be_kept_the_samples_are_read_all_the_same(
    shards, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(indices, "store", lambda *_: False)
    source = pickle.loads(pickle.dumps(WebDatasetSource(tmp_path)))
    assert read_all(source) == EXPECTED
    assert "index cannot be stored" in caplog.text


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", ["a", "folder/ä", "b" * 95, "d" * 90 + "/" + "e" * 60, ".c"])
def test_headers_of_plain_files_are_read_as_tarfile_reads_them(tmp_path, form, name, monkeypatch):
    with tarfile.open(tmp_path / "s.tar", "w", format=form) as tar:
        for ending, content in ((".txt", b"gray"), (".json", b"{}"), (".png", png(3) * 9)):
            member = tarfile.TarInfo(name + ending)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        stop = tar.offset
    data = (tmp_path / "s.tar").read_bytes()[:stop]
    found = webdataset._sample(data, "here")
    plain = webdataset._plain_files(data)
    long = len(name) > 95 and form != tarfile.USTAR_FORMAT
    assert (plain is None) == (long or ("ä" in name and form == tarfile.PAX_FORMAT))
    monkeypatch.setattr(webdataset, "_plain_files", lambda _: None)
    assert webdataset._sample(data, "here") == found
    assert len(found[1]) == (0 if name == ".c" else 3)


@pytest.mark.parametrize("at", [0, 124, 150, 156])
def test_a_damaged_header_is_no_plain_file(at):
    header = bytearray(tarfile.TarInfo("a.txt").tobuf(tarfile.USTAR_FORMAT))
    assert webdataset._plain_files(bytes(header)) == [("a.txt", b"")]
    header[at] ^= 0x17
    assert webdataset._plain_files(bytes(header)) is None
    assert webdataset._plain_files(bytes(100)) is None


def test_samples_without_a_picture_are_counted_when_a_task_needs_one(tmp_path, caplog):
    files = {f"{n}.txt": f"gray {n}" for n in range(6)} | {f"{n}.png": png(n) for n in (0, 1, 4)}
    source = WebDatasetSource(write_tar(tmp_path / "a.tar", dict(sorted(files.items()))))
    found = {entry.task: entry.source for entry in entries_of({"text_to_image": 1.0}, source)}
    assert [level for level, _ in read_all(found["text_to_image"])] == [0, 1, 4]
    assert "a.tar): 3 of 6 records have image and captions, which the task 'text_t" in caplog.text
    caplog.clear()
    assert len(entries_of({"text": 1.0}, source)[0].source) == 6 and not caplog.text


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "junk",
    [
        lambda whole: b"",
        lambda whole: b"junk",
        lambda whole: whole[: len(whole) // 2],
        lambda whole: whole[:-1],
        lambda whole: npy(np.arange(3, dtype=np.float32)),
        lambda whole: npy(np.zeros((3, 3), np.uint64)),
        lambda whole: npy(np.zeros(5, np.uint64)),
        lambda whole: npy(np.zeros(0, np.uint64)),
    ],
)
def test_a_damaged_index_is_made_again(shards, tmp_path, junk, cache):
    WebDatasetSource(tmp_path)
    for kept in (*tmp_path.glob(".*.npy"), *cache.rglob("*.npy")):
        kept.write_bytes(junk(kept.read_bytes()))
    assert read_all(WebDatasetSource(tmp_path)) == EXPECTED


def test_headers_of_kept_indices_are_parsed_one_at_a_time(shards, tmp_path, cache, monkeypatch):
    """Python 3.11.7 fails now and then where two threads parse at once."""
    WebDatasetSource(tmp_path)
    for joined in cache.rglob("*.npy"):
        joined.unlink()  # so that those of all shards are read again, by several threads
    load, alone = np.load, threading.Lock()

    def checked(*args, **kwargs):
        assert alone.acquire(blocking=False)
        time.sleep(0.02)
        try:
            return load(*args, **kwargs)
        finally:
            alone.release()

    monkeypatch.setattr(indices.np, "load", checked)
    assert read_all(WebDatasetSource(tmp_path)) == EXPECTED


def test_a_shard_that_is_cut_during_a_run_breaks_its_records_only(shards, tmp_path):
    source = WebDatasetSource(tmp_path)
    os.truncate(shards[1], 700)
    with pytest.raises(RecordError, match=r"s-001.tar ends before byte .* start again"):
        source[5]
    assert read_or_next(source, 11)[0].captions == ("gray 11",)


# ---- shards that cannot be used ---------------------------------------------------------------


@pytest.mark.parametrize("left", [700, 512 + 512])
def test_a_cut_shard_is_refused_at_the_start(tmp_path, left):
    path = write_tar(tmp_path / "s.tar", {"a.png": png(1), "b.png": png(2)})
    os.truncate(path, left)
    with pytest.raises(SourceError, match=r"s.tar: .*(unexpected end|cut short).*copy"):
        WebDatasetSource(path)


def test_a_damaged_header_is_no_end(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"a.png": png(1), "b.png": png(2)})
    data = bytearray(path.read_bytes())
    data[1024:1100] = b"x" * 76
    path.write_bytes(data)
    with pytest.raises(SourceError, match="is damaged at byte 1024"):
        WebDatasetSource(path)


def test_files_that_cannot_be_shards_are_refused_with_the_cure(tmp_path):
    path = write_tar(tmp_path / "s.tar", {"a.jpg": png(1), "b.jpg": png(2), "a.txt": "late"})
    with pytest.raises(SourceError, match="files of a are not next to each other.*--sort=name"):
        WebDatasetSource(path)
    packed = tmp_path / "z.tar"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(SourceError, match="gunzip it"):
        WebDatasetSource(packed)
    with pytest.raises(SourceError, match="no record"):
        WebDatasetSource(write_tar(tmp_path / "e.tar", {}))


def test_a_missing_shard_of_a_brace_pattern_is_named(shards, tmp_path):
    with pytest.raises(SourceError, match=r"s-003.tar \(4 names of .*\): no .tar file there"):
        WebDatasetSource(tmp_path / "s-{000..003}.tar")


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a{08..10}.tar", ["a08.tar", "a09.tar", "a10.tar"]),
        ("a{9..11}", ["a9", "a10", "a11"]),
        ("{a,b}/{1..2}", ["a/1", "a/2", "b/1", "b/2"]),
        ("{x}-{1..2}", ["{x}-1", "{x}-2"]),
        ("{a..b}{1,2}", ["{a..b}1", "{a..b}2"]),
    ],
)
def test_braces_are_expanded_as_a_shell_does_it(pattern, names):
    assert list(expand_braces(pattern)) == names


def test_a_file_whose_name_has_braces_is_found(tmp_path):
    path = write_tar(tmp_path / "{a,b}.tar", {"a.png": png(1)})
    assert find_files(path, (".tar",), "") == [str(path)]


def test_more_shards_than_may_be_open_are_all_read(tmp_path, monkeypatch):
    write_shards(tmp_path, 60, 1)
    monkeypatch.setattr(open_files, "MOST_OPEN", 4)
    with files_left(4 * indices.SCANNERS + 8):  # a scan has a shard, its index and a map of it open
        found = read_all(WebDatasetSource(tmp_path))
    assert found == [(number, (f"gray {number}",)) for number in range(60)]
