"""Two processes with two devices each train as one process with four; stopping loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import chex
import numpy as np
import pytest
from rich.console import Console

from tests.compiling import CACHE, xla_flags
from tests.tiny import tiny_config
from unicom_jax.families.build import build_codec, build_encoder, build_unified
from unicom_jax.parallel.processes import ProcessError, ProcessGroup
from unicom_jax.runs import checkpoint as files
from unicom_jax.training.clock import CLOCK
from unicom_jax.training.run import _prepare

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
from tests.tiny import tiny_config

def get_config():
    return tiny_config(
        encoder__eval_every=4, encoder__eval_batches=1, encoder__ema_decay=0.5,
        encoder__vision__heads=4, encoder__text__heads=4,  # tensor=4 shares them out
        codec__perceptual_weight=0.5, pretrain__ema_decay=0.5, pretrain__eval_every=4,
        pretrain__eval_batches=1, pretrain__sequence_length=64,
    )
"""
BUILD = {"encoder": build_encoder, "codec": build_codec, "pretrain": build_unified}


def run(
    workdir: Path,
    stages: str,
    processes: int,
    stop: tuple[int, int] = (0, -1),
    mesh: str = "fsdp=-1",
    signal: str = "SIGTERM",
    config: str = CONFIG,
    flags: Sequence[str] = (),
) -> list:
    """(exit status, stderr, notes of the worker) of every process; four devices in all.

    Args:
      stop: (process, batch): the process sends itself `signal` at that batch.
      config: the text of the configuration file.
      flags: further ones of `unicom train`.
    """
    path = workdir.parent / "tiny.py"
    path.write_text(config)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE)),
        "XLA_FLAGS": xla_flags(devices=4 // processes),
        "NPROC": "8",  # threads, see parallel/cpu_threads
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # compiling is most of the work
    }
    started = []
    for process in range(processes):
        notes = workdir.parent / f"{workdir.name}-{process}.json"
        meeting = (f"127.0.0.1:{port}", processes, process)
        names = ("--coordinator", "--processes", "--process")
        given = [f"{name}={value}" for name, value in zip(names, meeting, strict=True)]
        given += [f"--config={path}", f"--workdir={workdir}", f"--stages={stages}", *flags]
        stop_at = str(stop[1] if process == stop[0] else -1)
        command = [sys.executable, "-m", "tests.training.worker", str(notes), stop_at, signal]
        command += [*given, "--process-timeout=120", "--lost-after=60", f"--config.mesh={mesh}"]
        worker = subprocess.Popen(
            command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True
        )
        started.append((worker, notes))
    ended = []
    try:
        for worker, notes in started:
            printed = worker.communicate(timeout=900)[1]
            assert notes.is_file(), printed
            ended.append((worker.returncode, printed, json.loads(notes.read_text())))
    finally:
        for worker, _ in started:
            worker.kill()  # only where something went wrong is one still there
    return ended


def rows(ended: list) -> list[dict]:
    """What all processes together trained on: for every batch, row -> checksum."""
    merged = []
    for parts in zip(*(notes for _, _, notes in ended), strict=True):
        whole: dict = {}
        for part in parts:
            assert all(whole.get(row, checksum) == checksum for row, checksum in part.items())
            whole |= part
        merged.append(whole)
    return merged


def statuses(ended: list) -> list[int]:
    return [status for status, _, _ in ended]


def curve(workdir: Path, stage: str) -> list[dict]:
    """The stage's metrics, without what the clock says."""
    lines = [json.loads(line) for line in (workdir / stage / "metrics.jsonl").open()]
    return [{k: v for k, v in line.items() if k not in CLOCK} for line in lines]


def assert_close(left: list[dict], right: list[dict]) -> None:
    assert [sorted(line) for line in left] == [sorted(line) for line in right]
    for one, two in zip(left, right, strict=True):
        np.testing.assert_allclose(list(one.values()), [two[k] for k in one], rtol=1e-4, atol=1e-6)


def weights(workdir: Path, stage: str):
    module = BUILD[stage](files.read_config(workdir))
    return files.restore_params(workdir, stage, module.abstract())


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A run of one process, never stopped, and what it trained on."""
    workdir = tmp_path_factory.mktemp("one") / "run"
    ended = run(workdir, "encoder", processes=1)
    assert statuses(ended) == [0], ended[0][1]
    return workdir, rows(ended)


@pytest.mark.slow
def test_sigterm_to_one_of_two_processes_saves_and_one_process_ends_the_run(one, tmp_path):
    whole, trained_on = one
    workdir = tmp_path / "run"
    ended = run(workdir, "encoder", processes=2, stop=(1, 1))
    assert statuses(ended) == [75, 75], ended[0][1]
    for process, (_, printed, _) in enumerate(ended):
        line = f"unicom train (process {process} of 2): encoder: stopped and saved at step 3 of 4"
        assert line in printed
    assert files.stage_steps(workdir, "encoder") == [2, 3]
    before = rows(ended)

    ended = run(workdir, "encoder", processes=1)
    assert statuses(ended) == [0], ended[0][1]
    assert before + rows(ended) == trained_on  # three batches, one more, and the held-out one
    assert_close(curve(workdir, "encoder"), curve(whole, "encoder"))
    facts = json.loads((workdir / "encoder/stage.json").read_text())
    assert facts["resumed_from"] == 3 and facts["compilations"] == 1


def test_a_workdir_that_only_one_process_sees_is_refused(tmp_path):
    with pytest.raises(ProcessError, match="process 1 does not see .*config.json, .* share"):
        _prepare(tiny_config(), tmp_path, Console(), ProcessGroup(1, 2), lambda tokenizer: None)


ENDS_OF_OTHERS = (76, -6)  # -6: JAX's abort, which is faster where process 0 is gone


def before_the_kill(ended: list, victim: int) -> list[dict]:
    """What they trained on; the status of the one that was killed, and the words of the others."""
    for process, (status, printed, _) in enumerate(ended):
        if process == victim:
            assert status == -9
        else:
            assert status in (ENDS_OF_OTHERS if victim == 0 else ENDS_OF_OTHERS[:1]), printed
            assert victim == 0 or f"process {victim} of {len(ended)} " in printed, printed
    shortest = min(len(notes) for _, _, notes in ended)
    assert shortest >= 3
    return rows([(*end, notes[:shortest]) for *end, notes in ended])


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_after_kill_9_of_one_of_two_processes_both_resume_and_no_bit_differs(tmp_path, victim):
    """And one process continues alone, on another mesh."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    calm = run(whole, "encoder", processes=2)
    assert statuses(calm) == [0, 0]
    ended = run(killed, "encoder", processes=2, stop=(victim, 3), signal="SIGKILL")
    before = before_the_kill(ended, victim)
    assert before == rows(calm)[: len(before)]
    assert files.stage_steps(killed, "encoder") == [2]
    alone = shutil.copytree(killed, tmp_path / "alone")

    again = run(killed, "encoder", processes=2)
    assert statuses(again) == [0, 0], again[0][1]
    assert rows(again) == rows(calm)[2:]  # and the held-out one
    assert curve(killed, "encoder") == curve(whole, "encoder")
    chex.assert_trees_all_equal(weights(killed, "encoder"), weights(whole, "encoder"), strict=True)

    assert statuses(again := run(alone, "encoder", processes=1)) == [0], again[0][1]
    assert rows(again) == rows(calm)[2:]
    assert_close(curve(alone, "encoder"), curve(whole, "encoder"))


@pytest.mark.slow
def test_after_kill_9_of_one_of_four_processes_one_or_two_resume(one, tmp_path):
    whole, trained_on = one
    workdir = tmp_path / "run"
    ended = run(workdir, "encoder", processes=4, stop=(2, 3), signal="SIGKILL")
    before = before_the_kill(ended, victim=2)
    assert before == trained_on[: len(before)]
    for processes in (1, 2):
        left = shutil.copytree(workdir, tmp_path / str(processes))
        again = run(left, "encoder", processes=processes)
        assert statuses(again) == [0] * processes, again[0][1]
        assert rows(again) == trained_on[2:]
        assert_close(curve(left, "encoder"), curve(whole, "encoder"))


@pytest.mark.slow
def test_two_processes_resume_where_one_stopped_past_a_damaged_checkpoint_on_another_mesh(
    one, tmp_path
):
    whole, trained_on = one
    workdir = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(workdir / "encoder" / "checkpoints" / "4" / files.TRAIN)
    ended = run(workdir, "encoder", processes=2, mesh="tensor=-1")
    assert statuses(ended) == [0, 0], ended[0][1]
    assert [sorted(map(int, batch)) for batch in ended[0][2]] == [[0, 1, 2, 3]] * 3  # all rows each
    assert rows(ended) == trained_on[2:]
    assert_close(curve(workdir, "encoder"), curve(whole, "encoder"))


@pytest.mark.slow
def test_on_the_same_processes_stopping_changes_no_bit(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert statuses(run(whole, "encoder", processes=2)) == [0, 0]
    assert statuses(run(stopped, "encoder", processes=2, stop=(0, 0))) == [75, 75]
    assert statuses(run(stopped, "encoder", processes=2)) == [0, 0]
    assert curve(stopped, "encoder") == curve(whole, "encoder")
    chex.assert_trees_all_equal(weights(stopped, "encoder"), weights(whole, "encoder"), strict=True)


@pytest.mark.slow
def test_all_stages_in_two_processes_equal_one_process(tmp_path):
    stages = "encoder,codec,pretrain"
    alone, together = tmp_path / "alone", tmp_path / "together"
    first, second = run(alone, stages, processes=1), run(together, stages, processes=2)
    assert statuses(first + second) == [0, 0, 0], (first[0][1], second[0][1])
    assert rows(first) == rows(second)
    for stage in stages.split(","):
        assert_close(curve(together, stage), curve(alone, stage))
        facts = json.loads((together / stage / "stage.json").read_text())
        assert facts["compilations"] == 1
    left, right = (weights(workdir, "codec")["statistics"] for workdir in (alone, together))
    for name in ("mean", "std"):
        np.testing.assert_allclose(left[name], right[name], rtol=1e-4, atol=1e-6)
