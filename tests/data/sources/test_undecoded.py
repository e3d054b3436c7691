"""Pictures are decoded for the tasks that look at them, once each, and kept as cheaply as fits."""

from __future__ import annotations

import functools
from collections import Counter

import pytest

from data_pipelines import build
from data_pipelines.batches import document_stream, picture_loader
from data_pipelines.build import load_or_train_tokenizer, open_examples, open_one
from data_pipelines.decoding import load_picture
from data_pipelines.examples import Edit, Example
from data_pipelines.faults import RecordError
from data_pipelines.sources.cache import CachedSource
from data_pipelines.sources.configured import configured_sources
from data_pipelines.sources.records import write_records
from data_pipelines.sources.split import TRAIN
from data_pipelines.sources.undecoded import EVERY_PICTURE, ONE_PICTURE, TEXTS_ALONE, PictureFile
from tests.data.samples import tokenizer
from tests.data.sources.formats import (
    png,
    tf_example,
    write_jsonl,
    write_parquet,
    write_shards,
    write_tar,
    write_tf_examples,
)
from tests.tiny import tiny_config

COUNT = 8


@pytest.fixture
def decodes(monkeypatch):
    """The sizes in bytes of all pictures that are decoded."""
    found = []

    def counting(data, *args, **kwargs):
        found.append(len(data))
        return load_picture(data, *args, **kwargs)

    monkeypatch.setattr(build, "load_picture", counting)
    return found


def write(kind, folder):
    texts = [f"gray {value}" for value in range(COUNT)]
    files = [png(value) for value in range(COUNT)]
    edited = {"edits": [{"instruction": "darker", "target": "t.png"}] * 2}
    match kind:
        case "webdataset":
            write_shards(folder, 1, COUNT)
        case "edits":
            members = [
                {f"{n}.png": files[n], f"{n}.t.png": files[n], f"{n}.json": {"text": "x", **edited}}
                for n in range(COUNT)
            ]
            write_tar(folder / "e.tar", functools.reduce(dict.__or__, members))
        case "parquet":
            write_parquet(folder / "a.parquet", {"image": files, "text": texts})
        case "jsonl":
            for value, file in enumerate(files):
                (folder / f"{value}.png").write_bytes(file)
            rows = [{"image": f"{n}.png", "text": text} for n, text in enumerate(texts)]
            write_jsonl(folder / "a.jsonl", rows)
        case "array_record":
            pairs = zip(files, texts, strict=True)
            write_records(folder / "a", [Example(t, file, (t,)) for file, t in pairs])
        case "tf_example":
            pairs = zip(files, texts, strict=True)
            records = [tf_example(image=[file], text=[t.encode()]) for file, t in pairs]
            write_tf_examples(folder / "a.array_record", *records)
    return {"edits": "webdataset"}.get(kind, kind)


def config_of(kind, folder, **overrides):
    source = {"kind": write(kind, folder), "path": str(folder), "held_out": 0.0}
    given = {f"data__source__{key}": value for key, value in source.items()}
    return tiny_config(**given, **overrides)


def documents(config, task, count=COUNT):
    config.pretrain.mixture = {**dict.fromkeys(config.pretrain.mixture, 0.0), task: 1.0}
    stream = document_stream(config, "pretrain", tokenizer())
    return [stream.document(index) for index in range(count)]


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "jsonl", "array_record", "tf_example"])
def test_texts_alone_decode_no_picture_and_a_drawn_one_is_decoded_once(kind, tmp_path, decodes):
    config = config_of(kind, tmp_path)
    documents(config, "text")
    load_or_train_tokenizer(config, None)
    assert decodes == []
    documents(config, "text_to_image")
    assert len(decodes) == COUNT
    picture_loader(config, "codec", tokenizer()).at(0)
    assert len(decodes) == COUNT + config.codec.batch_size


def test_the_targets_of_edits_are_decoded_for_edits_alone(tmp_path, decodes):
    config = config_of("edits", tmp_path, data__cache_mb=0)
    documents(config, "text_to_image")
    assert len(decodes) == COUNT
    documents(config, "edit")
    assert len(decodes) == COUNT + 3 * COUNT  # the picture and both targets


def test_a_text_beside_a_broken_picture_is_read_and_another_picture_takes_its_place(
    tmp_path, caplog
):
    config = config_of("webdataset", tmp_path)
    files = {f"{n}.png": png(n) if n else b"no picture" for n in range(3)}
    texts = {f"{n}.txt": f"gray {n}" for n in range(3)}
    members = dict(sorted((files | texts).items()))
    write_tar(tmp_path / "s-000.tar", members)
    assert not sum((counts for _, counts in documents(config, "text", 3)), start=Counter())
    found = sum((counts for _, counts in documents(config, "text_to_image", 3)), start=Counter())
    assert found["unreadable"] == 1
    assert "s-000.tar 0: cannot read image <10 bytes>: it is not a picture" in caplog.text
    assert [one.key for one in open_examples(config)] == [
        f"{tmp_path}/s-000.tar {n}" for n in (1, 1, 2)
    ]


def test_a_missing_file_breaks_its_record_where_it_is_looked_at(tmp_path):
    config = config_of("jsonl", tmp_path)
    (tmp_path / "0.png").unlink()
    (one,) = configured_sources(config)
    source = open_one(config, one, TRAIN)
    assert source.looking(TEXTS_ALONE)[0].captions == ("gray 0",)
    with pytest.raises(RecordError, match=r"record 1: cannot read image .*/0.png: No such file"):
        source[0]


class Files:
    """Records of one picture file each; `reads` counts them."""

    def __init__(self, decode):
        self.decode, self.reads = decode, 0

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        self.reads += 1
        edits = (Edit("x", PictureFile(png(index), self.decode), "other"),)
        return Example(str(index), PictureFile(png(index), self.decode), ("a",), edits=edits)


def epochs(max_bytes, look):
    decoded = []

    def decode(data, name):
        decoded.append(name)
        return load_picture(data).resize((5, 120))  # pixels take far more than the file

    source = Files(decode)
    cached = CachedSource(source, max_bytes)
    for _ in range(3):
        for index in range(COUNT):
            cached.looking(look)[index]
    return source.reads, len(decoded), cached.bytes


def test_pictures_that_fit_are_kept_decoded():
    assert epochs(100_000, ONE_PICTURE)[:2] == (COUNT, COUNT)
    assert epochs(100_000, EVERY_PICTURE)[:2] == (COUNT, 2 * COUNT)


def test_of_pictures_that_do_not_fit_decoded_the_files_are_kept():
    reads, decoded, taken = epochs(15_000, ONE_PICTURE)
    assert reads == COUNT and decoded == 3 * COUNT
    assert 8_000 < taken <= 15_000


def test_nothing_is_decoded_or_kept_without_a_cache():
    assert epochs(0, TEXTS_ALONE) == (3 * COUNT, 0, 0)


def test_a_cache_counts_the_files_that_its_paths_name_once_they_are_read(tmp_path):
    config = config_of("jsonl", tmp_path, data__cache_mb=1)
    (one,) = configured_sources(config)
    source = open_one(config, one, TRAIN)
    source.max_bytes = 10_000
    for look in (TEXTS_ALONE, ONE_PICTURE, TEXTS_ALONE):
        for index in range(COUNT):
            source.looking(look)[index]
    assert COUNT * 1_000 < source.bytes <= 10_000
