"""A run whose workdir is in an object store: it trains, stops, resumes and is used from there."""

from __future__ import annotations

import errno
import io
import json
import shutil
import threading

import chex
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.data.sources.formats import write_shards
from tests.stores import bucket_of_module, put, running_servers  # noqa: F401 - fixtures
from tests.training.conftest import config
from unicom_jax import cli
from unicom_jax.core.paths import StorePath, as_path
from unicom_jax.families.build import build_unified
from unicom_jax.interop.atomic import new_folder, write_text
from unicom_jax.runs import checkpoint as files
from unicom_jax.runs.lock import LockedError, workdir_lock
from unicom_jax.runs.origin import take_weights
from unicom_jax.runs.start import start_run
from unicom_jax.runs.storage import storage_problem
from unicom_jax.runs.workdir import COMMITTED, stage_steps
from unicom_jax.training.clock import CLOCK
from unicom_jax.training.run import run_stages
from unicom_jax.training.spool import Spool

# With one store in `make test` and both in `make test-slow`.
BOTH = pytest.mark.parametrize(
    "bucket",
    ["s3", pytest.param("gs", marks=pytest.mark.slow)],
    indirect=True,
    scope="module",
)


def go(workdir, *stages, **overrides):
    made = config(**overrides)
    run_stages(made, as_path(workdir), Console(file=io.StringIO(), width=1000), stages or None)


def losses(workdir):
    text = (as_path(workdir) / "pretrain" / "metrics.jsonl").read_text(encoding="utf-8")
    rows = map(json.loads, text.splitlines())
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def weights(workdir):
    workdir = as_path(workdir)
    module = build_unified(files.read_config(workdir))
    return files.restore_params(workdir, "pretrain", module.abstract())


@pytest.fixture(scope="module")
def run(bucket, whole, tmp_path_factory):
    """A run that was stopped at step 2 of `pretrain`, copied into the store and resumed there."""
    folder = shutil.copytree(whole, tmp_path_factory.mktemp("stopped") / "run")
    shutil.rmtree(folder / "pretrain" / "checkpoints" / "4")
    (folder / "pretrain" / "stage.json").unlink()
    workdir = put(folder, f"{bucket}/run")
    half = as_path(workdir) / "pretrain" / "checkpoints" / "3"  # of a save that was killed
    (half / "params" / "d" / "half").write_bytes(b"half")
    go(workdir)
    return workdir


@BOTH
def test_a_run_in_a_store_resumes_and_ends_as_one_on_a_disk_that_was_never_stopped(run, whole):
    chex.assert_trees_all_equal(weights(run), weights(whole), strict=True)
    assert losses(run) == losses(whole)


@BOTH
@pytest.mark.slow
def test_a_run_trains_from_nothing_in_a_store_on_data_in_the_store(
    bucket,
    whole,
    tmp_path,
    monkeypatch,
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    write_shards(tmp_path / "data", shards=2, samples=40)
    shutil.copytree(whole / "tokenizer", tmp_path / "words")
    copied = put(shutil.copytree(tmp_path / "data", tmp_path / "copy"), f"{bucket}/shards")
    words = put(tmp_path / "words", f"{bucket}/words")
    ends = {}
    for place, data in ((f"{bucket}/new", copied), (tmp_path / "new", str(tmp_path / "data"))):
        options = {
            "data__tokenizer": words,
            "data__source__kind": "webdataset",
            "data__source__path": data,
            "data__source__held_out": 0.2,
            "pretrain__mixture": {"text_to_image": 1.0},
            "pretrain__eval_by_task": False,
        }
        if place != tmp_path / "new":
            go(place, "encoder", "codec", **options)  # and stops
        go(place, **options)
        ends[str(place)] = weights(place), losses(place)
    (one, lost), (other, also_lost) = ends.values()
    chex.assert_trees_all_equal(one, other, strict=True)
    assert lost == also_lost
    assert not cli.main(["evaluate", f"--workdir={bucket}/new"])
    assert as_path(f"{bucket}/new/scores.json").is_file()


@BOTH
def test_what_a_killed_save_left_in_a_store_is_no_checkpoint_and_goes(run):
    folder = as_path(run) / "pretrain" / "checkpoints"
    assert stage_steps(as_path(run), "pretrain") == [2, 4]
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4"]
    assert all((folder / step / COMMITTED).is_file() for step in ("2", "4"))


@BOTH
def test_tensorboards_files_of_a_run_are_in_the_store(run):
    names = (as_path(run) / "pretrain" / "tensorboard").files()
    assert names and all(name.startswith("events") for name in names)


@BOTH
def test_a_run_in_a_store_draws_and_reports_into_the_store(run, bucket):
    out = f"{bucket}/drawn/circle.png"
    assert not cli.main(["sample", f"--checkpoint={run}", "--prompt=a circle", f"--out={out}"])
    with Image.open(io.BytesIO(as_path(out).read_bytes())) as picture:
        assert picture.size == (32, 32)
    assert not cli.main(["report", f"--workdir={run}"])
    assert "pretrain" in as_path(f"{run}/report.html").read_text()


@BOTH
@pytest.mark.slow
def test_an_export_of_a_run_in_a_store_goes_into_the_store_and_comes_back(run, bucket, capsys):
    target, workdir = f"{bucket}/exported", f"{bucket}/imported"
    assert not cli.main(["export", f"--checkpoint={run}", "--to=pytorch", target])
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(as_path(target).files())
    assert cli.main(["export", f"--checkpoint={run}", "--to=pytorch", target])  # it is there
    assert f"{target} already exists" in capsys.readouterr().err
    assert not cli.main(["import", f"--model={target}", f"--workdir={workdir}"])
    assert stage_steps(as_path(workdir), "pretrain") == [0]
    chex.assert_trees_all_equal(weights(workdir), weights(run))


@BOTH
def test_a_stage_starts_from_the_weights_of_a_run_in_a_store(run, bucket, whole, tmp_path):
    printed = Console(file=io.StringIO(), width=1000)
    for workdir in (f"{bucket}/warm", tmp_path / "warm"):
        warm = config(pretrain__init_from=f"{run}:pretrain")
        warm.stages = ("pretrain",)
        start_run(warm, as_path(workdir))
        take_weights(warm, as_path(workdir), printed)
        assert stage_steps(as_path(workdir), "pretrain") == [0]
        assert stage_steps(as_path(workdir), "encoder") == [0]
        chex.assert_trees_all_equal(weights(workdir), weights(whole))


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (ValueError("UNAVAILABLE: Error writing local file"), "the store says UNAVAILABLE"),
        (OSError(errno.EREMOTEIO, "Could not connect", "s3://b/x"), "Remote I/O error"),
        (ValueError("NOT_FOUND: UNAVAILABLE"), ""),
    ],
)
def test_a_store_that_does_not_answer_refuses_a_save_as_a_full_disk_does(error, problem):
    assert storage_problem(error) == problem


# ---- the lock ---------------------------------------------------------------------------------


def test_one_process_holds_the_lock_of_a_workdir_in_a_store(bucket):
    workdir = as_path(f"{bucket}/locked")
    with workdir_lock(workdir):
        refused = pytest.raises(LockedError, match=r"locked is in use by process \d+ on .* since")
        with refused, workdir_lock(workdir):
            pass
        assert (workdir / ".lock").is_file()  # the one that was refused left it alone
    assert not (workdir / ".lock").exists()
    with workdir_lock(workdir):
        pass


def test_the_lock_of_a_process_that_is_gone_is_taken_over(bucket):
    workdir = as_path(f"{bucket}/gone")
    with workdir_lock(workdir):
        mine = json.loads((workdir / ".lock").read_bytes())
    gone = {**mine, "process": 2**22 + 1, "id": "other"}  # beyond the largest number of one
    (workdir / ".lock").write_bytes(json.dumps(gone).encode())
    with workdir_lock(workdir):
        assert json.loads((workdir / ".lock").read_bytes())["process"] == mine["process"]


def test_a_lock_without_a_sign_of_life_is_taken_over(bucket, monkeypatch):
    workdir = as_path(f"{bucket}/stale")
    elsewhere = {"host": "another", "process": 1, "since": "today", "boot": "b", "id": "i"}
    (workdir / ".lock").write_bytes(json.dumps(elsewhere).encode())
    refused = pytest.raises(LockedError, match="process 1 on another since today")
    with refused, workdir_lock(workdir):
        pass
    monkeypatch.setattr("unicom_jax.runs.store_lock.STALE", -1.0)
    with workdir_lock(workdir):
        pass


def test_a_lock_that_was_just_released_is_not_removed(bucket, monkeypatch):
    """It may be another process's by then."""
    path, create, removed = as_path(f"{bucket}/released") / ".lock", StorePath.create, []

    def exists(self, data):
        monkeypatch.setattr(StorePath, "create", create)
        raise FileExistsError(str(self))

    monkeypatch.setattr(StorePath, "create", exists)
    monkeypatch.setattr(StorePath, "unlink", lambda self, **how: removed.append(self.name))
    with workdir_lock(path.parent):
        assert ".lock" not in removed
    assert ".lock" in removed


def test_a_lock_is_released_after_its_last_heartbeat(bucket, monkeypatch):
    monkeypatch.setattr("unicom_jax.runs.store_lock.TOUCH", 0.01)
    path, begun, removed = as_path(f"{bucket}/beating") / ".lock", threading.Event(), []
    write, unlink, early = StorePath.write_bytes, StorePath.unlink, threading.Event()

    def slow(self, data):
        begun.set()
        early.wait(0.5)
        write(self, data)
        removed.append(False)

    def remove(self, missing_ok=False):
        unlink(self, missing_ok=missing_ok)
        removed.append(True)
        early.set()

    with workdir_lock(path.parent):
        monkeypatch.setattr(StorePath, "write_bytes", slow)
        monkeypatch.setattr(StorePath, "unlink", remove)
        assert begun.wait(30.0)
    assert removed[-1] and False in removed and not path.exists()


def test_a_heartbeat_does_not_replace_the_lock_of_another_process(bucket, monkeypatch):
    """That took over just after the heartbeat had found no lock at all."""
    monkeypatch.setattr("unicom_jax.runs.store_lock.TOUCH", 0.01)
    path, heard = as_path(f"{bucket}/overtaken") / ".lock", threading.Event()
    write, create = StorePath.write_bytes, StorePath.create
    other = json.dumps({"host": "another", "process": 1, "id": "other"}).encode()

    def removed(self, data):
        monkeypatch.setattr(StorePath, "write_bytes", write)
        self.unlink()

    def overtaken(self, data):
        write(self, other)
        create(self, data)

    with workdir_lock(path.parent, lost=heard.set):
        monkeypatch.setattr(StorePath, "create", overtaken)
        monkeypatch.setattr(StorePath, "write_bytes", removed)
        assert heard.wait(30.0)
    assert path.read_bytes() == other


# ---- files ------------------------------------------------------------------------------------


def test_a_folder_of_a_store_is_replaced_and_an_error_leaves_the_old_one(bucket):
    target = as_path(f"{bucket}/folder")
    with new_folder(target) as part:
        (part / "config.json").write_text("1")
        (part / "old").mkdir()
        (part / "old" / "x").write_text("x")
    with pytest.raises(FileExistsError, match="already exists"), new_folder(target):
        pass
    with pytest.raises(KeyboardInterrupt), new_folder(target, replace=True) as part:
        (part / "config.json").write_text("2")
        raise KeyboardInterrupt
    assert target.files() == ["config.json", "old/x"]
    with new_folder(target, replace=True) as part:
        (part / "config.json").write_text("3")
    assert target.files() == ["config.json"]
    assert (target / "config.json").read_text() == "3"


def test_a_text_file_of_a_store_is_replaced(bucket):
    for text in ("one", "two\ud800"):
        write_text(f"{bucket}/a file.txt", text)
    assert as_path(f"{bucket}/a file.txt").read_text() == "two?"


def test_a_file_that_did_not_grow_does_not_replace_a_newer_one(bucket):
    directory = as_path(f"{bucket}/read")
    (directory / "log").write_text("a\n")
    spool = Spool(directory, ("log",))
    (directory / "log").write_text("a\nb\n")  # by another process
    spool.close()
    assert (directory / "log").read_text() == "a\nb\n"


def test_files_that_grow_are_uploaded_now_and_then_and_at_the_end(bucket):
    directory = as_path(f"{bucket}/grows")
    (directory / "log").write_text("a\n")
    spool = Spool(directory, ("log",))
    with (spool.folder / "log").open("a") as file:
        file.write("b\n")
    spool.push()
    assert (directory / "log").read_text() == "a\n"  # not every line by itself
    spool.push(now=True)
    assert (directory / "log").read_text() == "a\nb\n"
    (spool.folder / "more").mkdir()
    np.save(spool.folder / "more" / "x.npy", np.zeros(1))
    folder = spool.folder
    spool.close()
    assert directory.files() == ["log", "more/x.npy"] and not folder.exists()
