"""Files and rows prepared by Apache Beam's local runner: `make beam`; `make test` has no Beam."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import chex
import pytest

from data_pipelines.build import load_or_train_tokenizer
from data_pipelines.preparation import prepare_files
from data_pipelines.sources.records import SUFFIX, read_records
from data_pipelines.sources.traits import TRAITS, load_traits
from tests.data.loading.test_loader import take
from tests.data.loading.test_rows import small
from tests.data.packed import pack
from tests.data.sources.formats import png, write_jsonl, write_parquet, write_tar
from unicom_jax.cli import main
from unicom_jax.config import KEYS
from unicom_jax.runs.loading import stage_loader

pytest.importorskip("apache_beam")

CONFIG = """
from tests.data.loading.test_rows import small
def get_config():
    return small(pretrain__steps={steps})
"""


def command(tmp_path, out, *flags, steps=4):
    config = tmp_path / f"steps_{steps}.py"
    config.write_text(CONFIG.format(steps=steps))
    return ["data", "prepare", "packed", f"--config={config}", f"--out={tmp_path / out}", *flags]


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob(f"pretrain/*{SUFFIX}"))}


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What this process writes without Beam."""
    tokenizer = load_or_train_tokenizer(small(), None)
    return pack(small(), tokenizer, tmp_path_factory.mktemp("expected"))


@pytest.mark.parametrize("workers", [1, 2])
def test_the_bytes_do_not_depend_on_the_workers(expected, tmp_path, capfd, workers):
    assert main(command(tmp_path, "rows", f"--workers={workers}")) == 0
    assert files(tmp_path / "rows") == files(expected)
    printed = capfd.readouterr()
    assert printed.err == "" and printed.out.count("\n") == 1
    assert "16 rows to train on and 4 held out" in printed.out
    assert f"--config.data.packed={tmp_path / 'rows'}" in printed.out


def test_training_reads_what_beam_has_written(tmp_path):
    assert main(command(tmp_path, "rows")) == 0
    ready, made = small(data__packed=str(tmp_path / "rows")), small()
    tokenizer = load_or_train_tokenizer(ready, None)
    pairs = [take(stage_loader(c, "pretrain", tokenizer), 4) for c in (ready, made)]
    for left, right in zip(*pairs, strict=True):
        chex.assert_trees_all_equal(left, right)


def test_a_killed_preparation_leaves_only_whole_files_and_resumes(tmp_path):
    flags = command(tmp_path, "rows", "--workers=2", steps=100)
    process = subprocess.Popen(
        [sys.executable, "-m", "unicom_jax.cli", *flags],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        stdout=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while process.poll() is None and len(files(tmp_path / "rows")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = files(tmp_path / "rows")
    assert 2 <= len(kept) < 18
    assert main(flags) == 0
    whole = files(tmp_path / "rows")
    assert len(whole) == 16 + 2 and kept.items() <= whole.items()
    assert main(command(tmp_path, "again", steps=100)) == 0
    assert files(tmp_path / "again") == whole


def test_what_cannot_be_packed_is_one_line(tmp_path, capfd):
    flags = ["--config.pretrain.sequence_length=16", "--config.pretrain.overlong=skip"]
    flags += ["--config.data.image_size=64"]  # a picture has as many slots as a row
    assert main(command(tmp_path, "rows", *flags)) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "examples in a row cannot serve the task" in line


def test_flags_of_a_runner_are_passed_on_and_unknown_ones_are_named(tmp_path, capfd):
    flags = ["--runner=FnApiRunner", "--direct_num_workers=1"]
    assert main(command(tmp_path, "rows", *flags)) == 0
    capfd.readouterr()
    assert main(command(tmp_path, "rows", "--runner=FlinkRunner", "--flink_mastr=here")) == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert "--flink_mastr=here: neither unicom nor Apache Beam has this flag" in line
    assert "did you mean --flink_master?" in line


# ---- tar, Parquet and JSONL -------------------------------------------------------------------


def write_files(folder, kind):
    """20 records with pictures of gray, every other with a question; what to pass as --package."""
    asked = [{"question": "how gray?", "answer": "very", "kind": "level"}]
    rows = [{"text": f"gray {i}", "questions": asked if i % 2 == 0 else []} for i in range(20)]
    if kind == "webdataset":
        files = {}
        for i, row in enumerate(rows):
            files |= {f"{i:03d}.png": png(i), f"{i:03d}.json": row}
        return write_tar(folder / "a.tar", files)
    if kind == "parquet":
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return write_parquet(folder / "a.parquet", {"image": list(map(png, range(20))), **columns})
    for i in range(20):
        (folder / f"{i}.png").write_bytes(png(i))
    if kind == "folder":
        rows = [{"file_name": f"{i}.png", **row} for i, row in enumerate(rows)]
        return write_jsonl(folder / "captions.jsonl", rows).parent
    return write_jsonl(folder / "a.jsonl", [{"image": f"{i}.png", **r} for i, r in enumerate(rows)])


def prepared(kind, package, out, *flags):
    return main(["data", "prepare", kind, f"--package={package}", f"--out={out}", *flags])


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "jsonl", "folder"])
def test_files_become_the_records_that_one_process_would_write(kind, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(prepare_files, "SHARD", 8)
    package = write_files(tmp_path, kind)
    assert prepared(kind, package, tmp_path / "here") == 0
    assert prepared(kind, package, tmp_path / "beam", "--workers=2") == 0
    assert "20 examples" in capfd.readouterr().out.splitlines()[-1]
    both = [
        {
            path.name: path.read_bytes()
            for path in (tmp_path / name).iterdir()
            if path.suffix != ".log"
        }
        for name in ("here", "beam")
    ]
    assert both[0] == both[1] and len(both[0]) == 2 * 3  # with the traits beside them
    examples = list(read_records(tmp_path / "beam"))
    assert [example.captions for example in examples] == [(f"gray {i}",) for i in range(20)]
    assert [int(example.image[0, 0, 0]) for example in examples] == list(range(20))
    first = sorted((tmp_path / "beam").glob(f"*{SUFFIX}"))[0]
    assert [bool(t & TRAITS["questions"]) for t in load_traits(first, 8)] == [
        i % 2 == 0 for i in range(8)
    ]


def test_a_few_broken_records_are_left_out_and_many_leave_no_file(tmp_path, capfd):
    rows = [{"image": f"{i}.png", "text": f"gray {i}"} for i in range(20)]
    for i in range(18):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    package = write_jsonl(tmp_path / "a.jsonl", rows)
    assert prepared("jsonl", package, tmp_path / "few", "--workers=1") == 0
    out = capfd.readouterr().out
    assert "18 examples" in out and "2 broken records were" in out
    for i in range(6, 18):
        (tmp_path / f"{i}.png").unlink()
    assert prepared("jsonl", package, tmp_path / "many", "--workers=1") == 1
    assert "records are broken, more than --max-broken=0.1 allows" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "many").iterdir()] == ["beam.log"]
    assert len((tmp_path / "few" / "left_out.txt").read_text().splitlines()) == 2


def test_tar_files_become_packed_rows_that_a_run_would_pack(tmp_path):
    package = write_files(tmp_path, "webdataset")
    flags = ["--config.data.source.kind=webdataset", f"--config.data.source.path={package}"]
    flags += ["--config.pretrain.mixture.edit=0.0", "--config.data.source.held_out=0.2"]
    flags += [f"--config.data.source.size={KEYS['data.source.size'].default}"]
    assert main(command(tmp_path, "rows", *flags)) == 0
    rows = {"kind": "webdataset", "path": str(package), "held_out": 0.2}
    options = {f"data__source__{name}": value for name, value in rows.items()}
    options |= {
        "pretrain__mixture__edit": 0.0,
        "data__source__size": KEYS["data.source.size"].default,
    }
    ready, made = small(data__packed=str(tmp_path / "rows"), **options), small(**options)
    tokenizer = load_or_train_tokenizer(ready, None)
    pairs = [take(stage_loader(c, "pretrain", tokenizer), 2) for c in (ready, made)]
    for left, right in zip(*pairs, strict=True):
        chex.assert_trees_all_equal(left, right)
