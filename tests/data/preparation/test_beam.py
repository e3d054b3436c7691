"""Rows packed by Apache Beam's local runner. `make beam` runs it; `make test` is without Beam."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import chex
import pytest

from data_pipelines.build import load_or_train_tokenizer
from data_pipelines.sources.records import SUFFIX
from tests.data.loading.test_loader import take
from tests.data.loading.test_rows import small
from tests.data.packed import pack
from unicom_jax.cli import main
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
    told = capfd.readouterr()
    assert told.err == "" and told.out.count("\n") == 1
    assert "16 rows to train on and 4 held out" in told.out
    assert f"--config.data.packed={tmp_path / 'rows'}" in told.out


def test_training_reads_what_beam_has_written(tmp_path):
    assert main(command(tmp_path, "rows")) == 0
    ready, made = small(data__packed=str(tmp_path / "rows")), small()
    tokenizer = load_or_train_tokenizer(ready, None)
    pairs = [take(stage_loader(c, "pretrain", tokenizer), 4) for c in (ready, made)]
    for left, right in zip(*pairs, strict=True):
        chex.assert_trees_all_equal(left, right)


def test_a_killed_preparation_leaves_only_whole_files_and_goes_on(tmp_path):
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
    flags = ["--config.pretrain.sequence_length=8", "--config.pretrain.overlong=skip"]
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
