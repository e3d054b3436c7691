"""A small sweep from end to end: shared stages, a kill, two runners that resume, a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from tests.stores import bucket_of_module, running_servers  # noqa: F401 - fixtures
from unicom_jax.core.paths import as_path
from unicom_jax.sweeps.outcomes import DONE, read_outcome, read_outcomes
from unicom_jax.sweeps.results import SPENT

ROOT = Path(__file__).resolve().parents[2]
FILE = """\
import dataclasses

from experiments.sweeps import smoke


def get_sweep():
    whole = smoke.get_sweep()
    variants = {name: whole.variants[name] for name in ("narrow", "wide")}
    variants["broken"] = {"pretrain.freeze": (".*",)}
    return dataclasses.replace(
        whole, variants=variants, contrasts=whole.contrasts[:2], minutes=60
    )
"""
pytestmark = pytest.mark.slow


def start(file: Path, workdir: Path, *flags: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "unicom_jax.cli", "sweep", "run", str(file)]
    given = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *flags],
        env=os.environ | given | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that all of its processes can be killed at once
    )


def table(workdir: Path) -> list[dict]:
    """The results, but for what differs between two equal sweeps."""
    content = pyarrow.BufferReader((workdir / "results.parquet").read_bytes())
    rows = pyarrow.parquet.read_table(content).to_pylist()
    return [{key: value for key, value in row.items() if key not in SPENT} for row in rows]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[Path, Path]:
    """The file of a sweep, and the workdir of one runner that nobody disturbed."""
    folder = tmp_path_factory.mktemp("smoke")
    file, workdir = folder / "sweep.py", folder / "alone"
    file.write_text(FILE)
    reference = start(file, workdir, "--jobs=2")
    assert "2 of 6 runs have no result" in reference.communicate()[0]
    return file, workdir


def test_the_table_has_what_was_measured_and_why_a_variant_failed(alone):
    rows = table(alone[1])
    metrics = {row["metric"] for row in rows if row["variant"] == "narrow"}
    assert metrics >= {"eval/loss", "understanding/qa"}
    broken = [row for row in rows if row["variant"] == "broken"]
    assert [row["status"] for row in broken] == ["failed"] * 2
    assert all("trains no weight" in row["reason"] for row in broken)


def test_a_run_takes_no_space_for_what_it_shares(alone):
    workdir = alone[1]
    run = next(path for path in (workdir / "runs").iterdir() if path.name.startswith("wide-seed0"))
    assert read_outcome(workdir, run.name)["status"] == DONE
    inodes = {
        folder: sorted(
            path.stat().st_ino
            for path in (folder / "encoder/checkpoints/8/params").rglob("*")
            if path.is_file()
        )
        for folder in (run, *(workdir / "stages").glob("encoder-*"))
    }
    own = inodes.pop(run)
    assert own and own in inodes.values()  # hard links


@pytest.mark.parametrize("engine", ["local", "ray", "slurm"])
def test_a_killed_sweep_that_two_runners_resume_has_the_table_of_one_that_was_left_alone(
    engine, alone, tmp_path, request, monkeypatch
):
    monkeypatch.setenv("UNICOM_SLURM", "cluster=local")  # submitit's own executor does the jobs
    if engine == "ray":
        request.getfixturevalue("ray_cluster")
    check_killed_and_resumed(alone, tmp_path, f"--engine={engine}")


def test_a_killed_sweep_in_a_store_that_is_resumed_there_has_the_same_table(alone, bucket):
    check_killed_and_resumed(alone, as_path(f"{bucket}/sweep"))


def check_killed_and_resumed(alone: tuple[Path, Path], workdir: Path, *flags: str) -> None:
    file, reference = alone
    killed = start(file, workdir, *flags, "--jobs=2")
    while len(read_outcomes(workdir)) < 2:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.1)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    kept = read_outcomes(workdir)
    both = [start(file, workdir, *flags) for _ in range(2)]
    printed = [one.communicate()[0] for one in both]
    assert [one.returncode for one in both] == [1, 1], printed  # a variant has no result
    found = read_outcomes(workdir)
    done = {id: one for id, one in found.items() if one["status"] == DONE}
    assert len(done) == 12  # encoder, codec, two stages and two runs, of two seeds
    assert all(found[id] == one for id, one in kept.items())  # what was done is not done again
    assert table(workdir) == table(reference)
