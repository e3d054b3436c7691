"""`unicom data prepare folder`: pictures and a JSONL file become ArrayRecord files."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as PilImage

from data_pipelines.faults import RecordError
from data_pipelines.preparation.prepare_files import Limit, Part, write_part
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.records import read_records
from tests.data.sources.formats import png, write_jsonl, write_parquet, write_tar
from unicom_jax.cli import main


def error_line(capsys, *flags):
    """The last line on stderr of a preparation that fails; others name left-out records."""
    assert main(["data", "prepare", "folder", *flags]) == 1
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = []
    for name, shade in (("a", 10), ("b", 200)):
        PilImage.fromarray(np.full((8, 12, 3), shade, np.uint8)).save(folder / f"{name}.png")
        lines.append(json.dumps({"file_name": f"{name}.png", "text": f"picture {name}"}))
    (folder / "captions.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_a_folder_becomes_records_of_the_same_examples(photos, tmp_path, capsys):
    out = tmp_path / "records"
    assert main(["data", "prepare", "folder", f"--package={photos}", f"--out={out}"]) == 0
    assert f"kind=array_record --config.data.source.path={out}" in capsys.readouterr().out
    source = FolderSource(photos)
    for made, given in zip(read_records(out), (source[0], source[1]), strict=True):
        np.testing.assert_array_equal(made.image, given.image)
        assert (made.key, made.captions) == (given.key, given.captions)


def test_a_broken_record_of_a_folder_is_left_out_named_and_listed(photos, tmp_path, capsys):
    (photos / "b.png").unlink()
    out = tmp_path / "records"
    command = ["data", "prepare", "folder", f"--package={photos}", f"--out={out}"]
    assert main(command) == 0
    said = capsys.readouterr()
    listed = out / "left_out.txt"
    assert f"1 examples of {photos}" in said.out
    assert f"1 broken record was left out, listed in {listed}" in said.out
    (line,) = listed.read_text().splitlines()
    assert "captions.jsonl line 2" in line and "b.png" in line
    assert [example.captions for example in read_records(out)] == [("picture a",)]
    PilImage.new("RGB", (8, 8)).save(photos / "b.png")
    assert main(command) == 0  # repaired: nothing is left out any more
    assert not listed.exists() and len(list(read_records(out))) == 2


def test_a_folder_whose_records_are_all_broken_is_not_prepared(photos, tmp_path, capsys):
    for path in photos.glob("*.png"):
        path.write_bytes(b"junk")
    out = tmp_path / "records"
    line = error_line(capsys, f"--package={photos}", f"--out={out}")
    assert "all 2 records are broken" in line and not out.exists()


def test_two_preparations_into_one_folder_do_not_disturb_each_other(photos, tmp_path, capsys):
    out = tmp_path / "records"
    hold = (
        "import sys; from pathlib import Path; from unicom_jax.runs.lock import workdir_lock\n"
        "with workdir_lock(Path(sys.argv[1])): print(flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold, str(out)], **pipes) as holder:
        holder.stdout.readline()
        line = error_line(capsys, f"--package={photos}", f"--out={out}")
        holder.stdin.close()
    assert f"{out} is in use by process {holder.pid} on" in line and "use another folder" in line
    assert main(["data", "prepare", "folder", f"--package={photos}", f"--out={out}"]) == 0
    assert len(list(read_records(out))) == 2


def test_a_photo_keeps_the_bytes_of_its_file(photos, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    PilImage.fromarray(noise).save(photos / "a.png", "JPEG")
    out = tmp_path / "records"
    assert main(["data", "prepare", "folder", f"--package={photos}", f"--out={out}"]) == 0
    (file,) = out.glob("*.array_record")
    assert (photos / "a.png").read_bytes() in file.read_bytes()


def test_a_second_preparation_in_other_shards_takes_the_place_of_the_first(
    photos, tmp_path, monkeypatch
):
    out = tmp_path / "records"
    command = ["data", "prepare", "folder", f"--package={photos}", f"--out={out}"]
    for size in (10_000, 1, 10_000):
        monkeypatch.setattr("data_pipelines.preparation.prepare_files.SHARD", size)
        (out / "examples-00007-of-00009.unfinished").parent.mkdir(exist_ok=True)
        (out / "examples-00007-of-00009.unfinished").touch()  # of one that was killed
        assert main(command) == 0
        assert len(list(read_records(out))) == 2
        assert len(list(out.iterdir())) == (4 if size == 1 else 2)  # records and their traits


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The same five pictures, of which one is broken, as files of each kind, by that kind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = [png(value) if value != 2 else b"junk" for value in range(5)]
    texts = [f"gray {value}" for value in range(5)]
    members = {}
    for number, (picture, text) in enumerate(zip(data, texts, strict=True)):
        members |= {f"{number}.png": picture, f"{number}.txt": text}
        (tmp_path / f"{number}.png").write_bytes(picture)
    rows = [{"image": f"{number}.png", "text": text} for number, text in enumerate(texts)]
    return {
        "jsonl": write_jsonl(tmp_path / "a.jsonl", rows),
        "parquet": write_parquet(tmp_path / "a.parquet", {"image": data, "text": texts}),
        "webdataset": write_tar(tmp_path / "a.tar", members),
    }


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "webdataset"])
def test_files_of_other_formats_become_records_of_the_same_examples_in_order(
    files, kind, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("data_pipelines.preparation.prepare_files.SHARD", 2)
    out = tmp_path / "records"
    assert main(["data", "prepare", kind, f"--package={files[kind]}", f"--out={out}"]) == 0
    said = capsys.readouterr()
    assert "4 examples" in said.out and "1 broken record was left out" in said.out
    made = [(int(e.image[0, 0, 0]), e.captions) for e in read_records(out)]
    assert made == [(value, (f"gray {value}",)) for value in (0, 1, 3, 4)]
    assert len(list(out.glob("*.array_record"))) == 3
    assert png(3) in b"".join(file.read_bytes() for file in out.glob("*.array_record"))


def test_files_of_which_too_many_records_are_broken_are_not_prepared(tmp_path, capsys):
    path = write_parquet(tmp_path / "a.parquet", {"image": [b"junk"] * 5, "text": ["a"] * 5})
    out = tmp_path / "records"
    assert main(["data", "prepare", "parquet", f"--package={path}", f"--out={out}"]) == 1
    error = capsys.readouterr().err
    assert "4 of the first 4 records are broken, more than --max-broken=0.1 allows" in error
    assert not list(out.glob("*.array_record"))


class Junk:
    """A source of broken records."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int):
        raise RecordError(f"record {index} is junk")


def test_a_worker_says_which_records_it_has_seen(tmp_path):
    part = Part(str(tmp_path / "second"), 2, 8)
    write_part(lambda package, read: Junk(), "", Limit(8, 0.1), part)
    failed = json.loads((tmp_path / "second.json").read_text())["failed"]
    assert failed.startswith("4 of records 2 to 5 are broken") and "record 5" in failed


def test_more_broken_records_are_left_out_where_they_are_allowed(tmp_path, capsys):
    data = {"image": [b"junk"] * 5 + [png(1)] * 3, "text": ["a"] * 8}
    command = ["data", "prepare", "parquet", f"--out={tmp_path / 'records'}"]
    command.append(f"--package={write_parquet(tmp_path / 'a.parquet', data)}")
    assert main([*command, "--max-broken=0.6"]) == 1
    assert "5 of the first 5 records are broken" in capsys.readouterr().err
    assert main([*command, "--max-broken=0.7"]) == 0
    assert "5 broken records were left out" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*command, "--max-broken=2"])
    assert "2 is not between 0 and 1" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["photos [v2]", "with space", "a*?{b}", "it's $HOME", "-dash"])
def test_a_folder_of_any_name_is_prepared_and_the_printed_command_names_it(
    photos, tmp_path, capsys, name
):
    folder, out = photos.rename(tmp_path / name), tmp_path / f"records {name}"
    assert main(["data", "prepare", "folder", f"--package={folder}", f"--out={out}"]) == 0
    flags = shlex.split(capsys.readouterr().out.partition("train on them with ")[2])
    assert f"--config.data.source.path={out}" in flags
    assert len(list(read_records(out))) == len(list(read_records(next(out.glob("*d"))))) == 2


def test_a_path_that_is_not_utf8_is_read_and_written(photos, tmp_path, capsys):
    folder = photos.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    out = tmp_path / os.fsdecode(b"records\xff")
    assert main(["data", "prepare", "folder", f"--package={folder}", f"--out={out}"]) == 0
    assert "records\ufffd: 2 examples" in capsys.readouterr().out
    first, _ = read_records(out)
    assert first.key.endswith("caf\ufffd/captions.jsonl line 1")


@pytest.mark.parametrize(
    ("flags", "words"),
    [([], "add --package=PATH"), (["--package=x", "--size=64"], "--size does nothing for files")],
)
def test_a_folder_is_named_and_keeps_its_sizes(tmp_path, capsys, flags, words):
    assert words in error_line(capsys, f"--out={tmp_path}", *flags)


PACKED = ["data", "prepare", "packed", "--config=experiments/quickstart.py"]


def test_packing_without_beam_names_the_extra(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    assert main([*PACKED, f"--out={tmp_path}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs Apache Beam: pip install 'unicom_jax[prepare]'" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["packed"], "the rows of which configuration? add --config=FILE"),
        ([*PACKED[2:], "--size=64"], "--size does nothing for packed"),
        (["scenes", "--max-broken=1"], "--max-broken does nothing for scenes"),
        ([*PACKED[2:], "--max-broken=1"], "--max-broken does nothing for packed"),
        (["scenes", "--workers=2"], "--workers does nothing for scenes"),
        (["scenes", "--config.seed=1"], "--config.seed=1 does nothing for scenes"),
        (["scenes", "--runner=FlinkRunner"], "--runner does nothing for scenes"),
        (
            [*PACKED[2:], "--runner=FlinkRunner", "--workers=2"],
            "--workers does nothing for --runner=F",
        ),
        ([*PACKED[2:], "--features-dtype=float16"], "--features-dtype needs --features=RUN"),
    ],
)
def test_flags_of_another_preparation_are_refused_by_name(tmp_path, capsys, flags, words):
    assert main(["data", "prepare", *flags, f"--out={tmp_path}"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_runner_has_flags_only_when_it_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*PACKED, f"--out={tmp_path}", "--wrokers=2"])
    assert "unknown: --wrokers=2; did you mean --workers?" in capsys.readouterr().err
