"""What a run survives: workers that die, a trainer that dies, files that can no longer be read."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import closing, contextmanager

import chex
import pytest

from data_pipelines.faults import RecordError, SourceError
from data_pipelines.loading import loader as loaders
from data_pipelines.loading import workers
from data_pipelines.loading.loader import Loader, LoaderConfig, LoaderError
from data_pipelines.sources.cache import CachedSource
from data_pipelines.sources.records import ArrayRecordSource, write_records
from tests.data.loading.test_loader import loader, pictures, take
from tests.data.samples import example, tokenizer
from tests.tiny import tiny_config
from unicom_jax.runs.loading import stage_loader

# ---- processes --------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_no_batch_is_lost_or_doubled(caplog):
    with closing(loader(workers=2)) as batches:
        made = take(batches, 2)
        before = set(multiprocessing.active_children())
        os.kill(next(iter(before)).pid, signal.SIGKILL)
        while not batches.counts["restarts"] and len(made) < 40:
            made += take(batches, 1)  # first what the workers had made before
        assert batches.counts["restarts"] == 1
        assert not before & set(multiprocessing.active_children())
        for step, batch in enumerate(made):
            chex.assert_trees_all_equal(batch, loader().at(step))
    assert batches.counts["documents"] == len(made) * 16
    (line,) = caplog.messages
    assert "of 2 died (SIGKILL) before the batch of step" in line


def hangs_later(step):
    if step > 1:
        time.sleep(10_000)
    return step, Counter()


def test_a_worker_that_hangs_is_ended_when_the_loader_is_closed(monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 0.5)
    batches = Loader(hangs_later, LoaderConfig(1, workers=2))
    take(batches, 2)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


def deadly(step):
    if multiprocessing.parent_process():
        os.kill(os.getpid(), signal.SIGKILL)
    return step, Counter()


def test_a_batch_that_kills_its_workers_again_and_again_ends_the_run(monkeypatch):
    monkeypatch.setattr(loaders, "RESTARTS", 1)
    batches = Loader(deadly, LoaderConfig(1, workers=1), start=7)
    message = r"data worker 0 of 1 died \(SIGKILL\) before the batch of step 7, 2 times in a row"
    with pytest.raises(LoaderError, match=f"{message}.*--config.data.workers") as caught:
        next(batches)
    assert "\n" not in str(caught.value) and multiprocessing.active_children() == []


TRAINER = """
import multiprocessing, os, signal
from tests.data.loading.test_loader import loader
if __name__ == "__main__":
    batches = loader(workers=1)
    next(batches)
    print(len(multiprocessing.active_children()), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_workers_of_a_killed_trainer_end_too(tmp_path):
    (tmp_path / "trainer.py").write_text(TRAINER)
    command = [sys.executable, str(tmp_path / "trainer.py")]
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    # Its worker holds its stdout: the end of it comes when both are gone.
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, timeout=90, text=True)
    assert ended.returncode == -signal.SIGKILL and ended.stdout == "1\n"


# ---- files: when a run starts -----------------------------------------------------------------


@pytest.fixture
def files(tmp_path):
    """Forty records in four files."""
    return write_records(tmp_path / "train", [example(i) for i in range(40)], shards=4)


@contextmanager
def somebody_else():
    """Not root, who may read everything."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_file_that_may_not_be_read_is_named(files, tmp_path):
    files[1].chmod(0)
    ours = [parent for parent in tmp_path.parents if parent.name.startswith(("pytest-", "popen-"))]
    for directory in (tmp_path, *ours):
        directory.chmod(0o755)
    message = r"train-00001-of-00004.array_record: cannot be read \(Permission denied\): let"
    with somebody_else(), pytest.raises(SourceError, match=message) as caught:
        ArrayRecordSource(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_its_neighbours_speak_of_is_missed(files, tmp_path):
    files[2].unlink()
    message = r"train-00002-of-00004.array_record: missing \(1 of 4 files are\): copy"
    with pytest.raises(SourceError, match=message):
        ArrayRecordSource(tmp_path)
    assert len(ArrayRecordSource([files[0], files[1]])) == 20  # whoever names files has them


# ---- files: during a run ----------------------------------------------------------------------


def source_with_a_dead_file(files, damage):
    """As a worker finds it that starts after the damage."""
    pickled = pickle.dumps(CachedSource(ArrayRecordSource(files), 0))
    if damage == "gone":
        files[0].unlink()
    else:
        os.truncate(files[0], files[0].stat().st_size // 2)
    return pickle.loads(pickled)


@pytest.mark.parametrize("damage", ["gone", "cut off"])
def test_all_records_of_a_file_that_became_unreadable_are_counted_in_each_epoch(files, damage):
    batches = pictures(source_with_a_dead_file(files, damage), rows=40)
    for _ in range(2):
        before = batches.counts.copy()
        next(batches)
        new = batches.counts - before
        assert new["documents"] == 40  # others took their place
        assert new["unreadable"] >= 10 if damage == "gone" else new["unreadable"] > 0


def test_too_many_unreadable_records_end_the_run(files, monkeypatch):
    monkeypatch.setattr(loaders, "FEWEST", 40)
    source = source_with_a_dead_file(files, "gone")
    assert next(pictures(source, rows=40, max_unreadable=0.9)).grids.shape == (40, 2)
    message = r"of \d+ records could not be read up to step 1, more than data.max_unreadable=0.1"
    with pytest.raises(LoaderError, match=message) as caught:
        next(pictures(source, rows=40, max_unreadable=0.1))
    assert "\n" not in str(caught.value)


def test_a_few_unreadable_records_at_the_start_do_not(files):
    next(pictures(source_with_a_dead_file(files, "gone"), rows=4, max_unreadable=0.1))


@pytest.mark.parametrize("stage", ["encoder", "pretrain"])
def test_the_stages_count_unreadable_records_and_keep_to_the_configured_share(
    tmp_path, stage, monkeypatch
):
    (path,) = write_records(tmp_path / "train", [example(i) for i in range(20)])
    config = tiny_config(data__source__kind="array_record", data__source__held_out=0.0)
    config.data.source.path = str(path)
    config.data.patch, config.data.image_size, config.data.max_unreadable = 4, 8, 0.2
    config.pretrain.mixture.update({"edit": 0.0, "visual_qa": 0.0})
    monkeypatch.setattr(
        ArrayRecordSource, "__getitem__", broken_at({0, 1, 2, 3, 4}, ArrayRecordSource.__getitem__)
    )
    monkeypatch.setattr(loaders, "FEWEST", 1)
    with pytest.raises(LoaderError, match=r"data.max_unreadable=0.2"):
        take(stage_loader(config, stage, tokenizer()), 20)


def broken_at(indices, read):
    def getitem(self, index):
        if index in indices:
            raise RecordError(f"record {index}: unreadable")
        return read(self, index)

    return getitem
