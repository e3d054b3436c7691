"""Files as other programs leave them: each is read as it is meant, or refused with the fix."""

from __future__ import annotations

import io
import struct
import tarfile
import warnings
import zlib

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image as PilImage

from data_pipelines.build import source_options
from data_pipelines.decoding import load_image
from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sources.conversations import ConversationsSource
from data_pipelines.sources.documents import DocumentsSource
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.jsonl import JsonlSource
from data_pipelines.sources.parquet import ParquetSource
from data_pipelines.sources.registry import open_source
from data_pipelines.sources.text import TextSource
from data_pipelines.sources.webdataset import WebDatasetSource
from tests.data.sources.formats import (
    gray,
    png,
    read_all,
    write_jsonl,
    write_parquet,
    write_shards,
    write_tar,
)
from tests.data.sources.test_jsonl import turns
from tests.tiny import tiny_config
from unicom_jax.core.paths import LFS

ONE = {"image": [png(1)], "text": ["one"]}


@pytest.mark.parametrize("kind", ["parquet", "webdataset", "jsonl", "text"])
@pytest.mark.parametrize("name", ["0", "z"])  # first and last
def test_a_file_without_records_among_others_adds_none(tmp_path, kind, name):
    ending = {"parquet": "parquet", "webdataset": "tar", "jsonl": "jsonl", "text": "txt"}[kind]
    (tmp_path / "a.png").write_bytes(png(1))
    for stem, count in (("a", 2), (name, 0)):
        path = tmp_path / f"{stem}.{ending}"
        match kind:
            case "parquet":
                write_parquet(path, {key: value * count for key, value in ONE.items()})
            case "webdataset":
                write_tar(path, {f"{number}.png": png(1) for number in range(count)})
            case "jsonl":
                write_jsonl(path, [{"image": "a.png", "text": "one"}] * count)
            case "text":
                path.write_text("a line\n" * count)
    options = {"piece": 64} if kind == "text" else {}
    for _ in range(2):  # the second time from the kept index
        source = open_source({"kind": kind, "paths": str(tmp_path), **options})
        assert len(source) == 2 and source[1]
    with pytest.raises(SourceError, match="no records: check the path"):
        open_source({"kind": kind, "paths": str(tmp_path / f"{name}.{ending}"), **options})


# ---- tar ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_a_link_in_a_shard_is_refused_with_the_flags_that_store_its_content(tmp_path, kind):
    path = write_tar(tmp_path / "a.tar", {"a.png": png(1), "a.txt": "one"})
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = kind, "a.png"
        tar.addfile(link)
    with pytest.raises(SourceError, match=r"a.tar: b.png is a link.*--dereference"):
        WebDatasetSource(tmp_path)


def test_a_shard_that_was_joined_by_cat_is_refused_rather_than_read_in_part(tmp_path):
    path = write_tar(tmp_path / "a.tar", {"a.png": png(1), "a.txt": "one"})
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(SourceError, match="more follows its end mark.*tar --concatenate"):
        WebDatasetSource(tmp_path)


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "AVIF"])
def test_pictures_of_other_formats_are_pictures_in_shards_too(tmp_path, kind):
    data = io.BytesIO()
    options = {"quality": 100} if kind == "AVIF" else {}
    PilImage.fromarray(gray(9)).save(data, kind, **options)
    write_tar(tmp_path / "a.tar", {f"a.{kind.lower()}": data.getvalue(), "a.txt": "nine"})
    assert read_all(WebDatasetSource(tmp_path)) == [(9, ("nine",))]


def test_a_name_with_a_dot_too_many_is_explained(tmp_path):
    write_tar(tmp_path / "a.tar", {"v1.0_a.png": png(1), "v1.0_a.txt": "one"})
    with pytest.raises(RecordError, match=r"among its files, \.0_a\.png.*first dot"):
        WebDatasetSource(tmp_path)[0]


def test_which_of_several_pictures_of_a_sample_is_used_is_said(tmp_path, caplog):
    write_tar(tmp_path / "a.tar", {"a.png": png(1), "a.webp": png(2), "a.txt": "one"})
    source = WebDatasetSource(tmp_path)
    assert "has several pictures (.png, .webp): .png is used" in caplog.text
    assert read_all(source) == [(1, ("one",))]
    caplog.clear()
    write_tar(tmp_path / "a.tar", {"a.png": png(1), "a.mask.png": png(2), "a.txt": "one"})
    assert read_all(WebDatasetSource(tmp_path)) == [(1, ("one",))] and not caplog.text


def test_a_byte_order_mark_is_no_part_of_a_caption_or_a_text(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.png": png(1), "a.txt": "\ufeffone"})
    (tmp_path / "t.txt").write_text("\ufeffone\n", encoding="utf-8")
    assert WebDatasetSource(tmp_path)[0].captions == ("one",)
    assert TextSource(tmp_path / "t.txt", piece=64)[0].captions == ("one",)


# ---- Parquet -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lacks", ["image", "text"])
def test_a_table_that_lacks_a_column_of_the_first_one_breaks_its_rows(tmp_path, lacks):
    write_parquet(tmp_path / "0.parquet", ONE)
    write_parquet(tmp_path / "1.parquet", {name: ONE[name] for name in ONE if name != lacks})
    source = ParquetSource(tmp_path)
    assert source[0].captions == ("one",)
    with pytest.raises(RecordError, match=f"1.parquet row 0: its file has no column '{lacks}'"):
        source[1]


def test_a_table_without_the_questions_of_the_first_one_has_none(tmp_path):
    questions = [[{"question": "what?", "answer": "one"}]]
    write_parquet(tmp_path / "0.parquet", {**ONE, "questions": questions})
    write_parquet(tmp_path / "1.parquet", ONE)
    source = ParquetSource(tmp_path)
    assert [len(source[index].questions) for index in range(2)] == [1, 0]
    assert source.traits().tolist() == [1, 0]


@pytest.mark.parametrize(
    ("questions", "trait"),
    [
        (pa.array([3]), 1),
        (pa.array([{"question": "q", "answer": "a"}]), 1),
        (pa.array(["x"]).dictionary_encode(), 1),
        (pa.array([None], pa.null()), 0),
        (pa.array([[None]], pa.list_(pa.struct([("question", pa.string())]))), 1),
        (pa.array([["from", "x"]]), 1),
    ],
    ids=["number", "struct", "dictionary", "null", "list of null", "list of texts"],
)
def test_a_column_of_another_type_breaks_its_rows_and_not_the_command(tmp_path, questions, trait):
    write_parquet(tmp_path / "0.parquet", {**ONE, "questions": questions})
    source = ParquetSource(tmp_path)
    assert source.traits().tolist() == [trait]
    if trait:
        with pytest.raises(RecordError, match="questions|needs the texts 'question'"):
            source[0]
    else:
        assert source[0].questions == ()


def test_captions_that_only_look_like_json_are_texts(tmp_path):
    write_parquet(tmp_path / "0.parquet", {**ONE, "text": ['{"a":' * 50_000]})
    assert ParquetSource(tmp_path)[0].captions[0].startswith('{"a":')


# ---- JSONL -------------------------------------------------------------------------------------


@pytest.mark.parametrize("speaker", [["human"], {"a": 1}, None, 3])
def test_a_speaker_that_is_no_text_breaks_its_record(tmp_path, speaker):
    talk = [{"from": speaker, "value": "what?"}, {"from": "gpt", "value": "one"}]
    write_jsonl(tmp_path / "a.jsonl", [{"conversations": talk}])
    for source in (JsonlSource(tmp_path), ConversationsSource(tmp_path)):
        with pytest.raises(RecordError, match="turn 1 of its conversation"):
            source[0]


def test_an_answer_with_the_mark_of_a_picture_is_refused(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"conversations": turns("show it", "<image>")}])
    with pytest.raises(RecordError, match="an answer has a mark <image>"):
        ConversationsSource(tmp_path)[0]


@pytest.mark.parametrize("start", [b"\xfd7zXZ\x00", b"PK\x03\x04"])
def test_other_archives_are_no_lines_either(tmp_path, start):
    (tmp_path / "a.jsonl").write_bytes(start + bytes(20))
    with pytest.raises(SourceError, match="compressed"):
        JsonlSource(tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_list_in_utf16_is_refused_with_the_command_that_converts_it(tmp_path, encoding):
    line = '\ufeff{"file_name": "a.png", "text": "a"}\n'
    for name in ("a.jsonl", "captions.jsonl", "documents.jsonl", "a.txt"):
        (tmp_path / name).write_bytes(line.encode(encoding))
    for open_it in (
        lambda: JsonlSource(tmp_path / "a.jsonl"),
        lambda: FolderSource(tmp_path),
        lambda: DocumentsSource(tmp_path),
        lambda: TextSource(tmp_path / "a.txt", piece=64),
    ):
        with pytest.raises(SourceError, match="UTF-16 text: convert it to UTF-8, .* iconv -f UTF"):
            open_it()


def test_a_list_that_is_compressed_or_not_fetched_is_refused_in_a_folder_too(tmp_path):
    for start, words in ((b"\x1f\x8b", "compressed"), (LFS.encode(), "git lfs pull")):
        (tmp_path / "captions.jsonl").write_bytes(start + b"\n")
        with pytest.raises(SourceError, match=words):
            FolderSource(tmp_path)


def test_a_picture_on_the_web_is_not_looked_for_on_the_disk(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "https://a.b/c.jpg", "text": "a"}])
    with pytest.raises(RecordError, match=r"https://a.b/c.jpg: pictures are not fetched from the"):
        JsonlSource(path)[0]


def test_a_field_that_is_no_text_is_not_called_missing(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": None}])
    with pytest.raises(RecordError, match="'text' is None: give a text"):
        TextSource(tmp_path, piece=64)[0]


# ---- paths --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["folder", "openmoji", "tfds", "webdataset"])
def test_an_empty_path_is_not_taken_for_the_present_folder(kind):
    config = tiny_config(data__source__kind=kind, data__source__size=20_000)
    with pytest.raises(
        SourceError, match=f"data.source.path is empty: give the data of kind '{kind}'"
    ):
        source_options(config, "train", False)


# ---- pictures ----------------------------------------------------------------------------------


def test_a_transparent_level_of_sixteen_bits_is_put_on_white():
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    levels = np.array([[257, 25700]], ">u2")
    header = struct.pack(">IIBBBBB", 2, 1, 16, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"tRNS", struct.pack(">H", 257)))
    body = (b"IDAT", zlib.compress(b"\0" + levels.tobytes()))
    data = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in (*parts, body, (b"IEND", b"")))
    assert load_image(data)[0].tolist() == [[255] * 3, [100] * 3]


def test_damaged_exif_of_a_whole_picture_is_passed_over_quietly():
    data = io.BytesIO()
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff"
    PilImage.fromarray(gray(9)).save(data, "JPEG", exif=exif, quality=100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module=r"PIL\.")  # as the module sets it
        assert load_image(data.getvalue())[0, 0].tolist() == [9, 9, 9]


@pytest.mark.parametrize(
    ("name", "source"),
    [("a.tar", WebDatasetSource), ("a.parquet", ParquetSource), ("a.jsonl", JsonlSource)],
)
def test_a_file_that_git_lfs_has_not_fetched_is_named_as_such(tmp_path, name, source):
    pointer = f"{LFS}.github.com/spec/v1\noid sha256:00\nsize 12\n"
    (tmp_path / name).write_text(pointer, encoding="utf-8")
    with pytest.raises(SourceError, match="pointer of Git LFS.* run git lfs pull"):
        source(tmp_path)
    with pytest.raises(ValueError, match="it is a pointer of Git LFS; run git lfs pull"):
        load_image(tmp_path / name)


def test_a_path_of_two_lines_is_named_in_one(tmp_path):
    with pytest.raises(SourceError, match=r"a\\nb: no .tar file there") as caught:
        open_source({"kind": "webdataset", "paths": str(tmp_path / "a\nb")})
    assert "\n" not in str(caught.value)
    write_shards(tmp_path, 1, 2)[0].rename(tmp_path / "c\nd.tar")
    assert len(open_source({"kind": "webdataset", "paths": str(tmp_path / "c\nd.tar")})) == 2
