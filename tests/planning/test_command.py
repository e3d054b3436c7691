"""`unicom plan`: what it prints, and how it ends."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from unicom_jax.cli import main

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """\
from tests.tiny import tiny_config


def get_config():
    config = tiny_config()
    config.stages = ("pretrain",)
    config.pretrain.batch_size = config.codec.batch_size = 8
    return config
"""


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return f"--config={path}"


def plan(*flags):
    return main(["plan", "--estimate", *flags])


def test_an_estimate_prints_a_table_for_all_stages_of_the_configuration(config, capsys):
    assert plan(config, "--topology=h100:8") == 0
    out = capsys.readouterr().out
    assert "8 devices, h100:8 (estimated, nothing" in out
    assert re.search(r"pretrain: [\d.]+ K trained: transformer", out)
    assert "reduce-scatter" in out


def test_stages_that_sample_texts_are_left_out_and_refused_by_name(config, capsys):
    stages = '--config.stages=("g4u","u4g")'
    assert plan(config, "--topology=h100:8", stages) == 0
    assert "g4u and u4g: stages that sample texts are not planned" in capsys.readouterr().out
    assert plan(config, "--topology=h100:8", "--stage=g4u") == 1
    assert "it can be trained, but not planned" in capsys.readouterr().err


def test_a_stage_that_does_not_fit_ends_with_one_line_that_names_a_setting(config, capsys):
    large = "--config.pretrain.batch_size=4194304"
    assert plan(config, "--topology=v5e:2x2", large) == 1
    captured = capsys.readouterr()
    assert re.fullmatch(
        r"unicom plan: pretrain needs \d+ GiB of a device's 16 GiB on v5e:2x2; "
        r"--config\.\S+( --config\.\S+)* should fit \(\d+ GiB by an estimate\)\n"
        r"|.*no mesh, remat or accumulation makes it fit; use more devices\n",
        captured.err,
    )
    assert "NO" in captured.out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--topology=v5p:16x16"], "a torus of 3 axes; write v5p:NxMxK in chips"),
        (["--topology=h100:8", "--stage=finetune"], "--stage=finetune is unknown; stages are"),
        (["--topology=cpu:1", "--stage=sample"], "--stage=sample can only be planned by compiling"),
        (
            ["--topology=h100:16"],
            "a batch of 8 rows does not divide over 16 devices; set batch_size",
        ),
        (
            ["--topology=v6e:2x2", "--slices=2"],
            "has slice=1, but there are 2 slices; write slice=2",
        ),
    ],
)
def test_a_wrong_flag_is_reported_in_one_line(config, capsys, flags, message):
    assert plan(config, *flags) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--estimate", "--keep=x"], "--keep does nothing with --estimate"),
        (["--search", "--keep=x"], "--keep does nothing with --search"),
        (["--search", "--estimate", "--compile=2"], "--compile does nothing with --estimate"),
        (["--compile=2"], "--compile does nothing without --search"),
        (["--search", "--compile=-1"], "--compile=-1: give at least 0"),
        (["--estimate", "--quick"], "--quick does nothing with --estimate"),
        (["--quick"], "--quick compiles TPU programs with little effort; it needs a TPU for"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(config, capsys, flags, message):
    assert main(["plan", config, "--topology=cpu:1", *flags]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_programs_cannot_be_kept_without_a_compiler(config, capsys, tmp_path):
    if importlib.util.find_spec("jax_cuda12_plugin"):
        pytest.skip("JAX's CUDA compiler is installed")
    assert main(["plan", config, "--topology=h100:8", f"--keep={tmp_path / 'hlo'}"]) == 1
    assert "--keep writes compiled programs, and compiling needs JAX's" in capsys.readouterr().err


def test_without_a_compiler_the_table_is_an_estimate_and_says_what_is_missing(config, capsys):
    if importlib.util.find_spec("jax_cuda12_plugin"):
        pytest.skip("JAX's CUDA compiler is installed")
    assert main(["plan", config, "--topology=h100:8"]) == 0
    out = capsys.readouterr().out
    assert "an estimate; a real plan needs JAX's CUDA compiler: pip install --no-deps" in out


@pytest.mark.slow
def test_a_search_names_its_best_setting(config, capsys):
    flags = ["--topology=v5e:2x2", "--search", "--stage=pretrain"]
    assert plan(config, *flags) == 0
    out = capsys.readouterr().out
    assert "settings estimated, 0 to be compiled" in out
    assert re.search(r"best: --config\.mesh=\S+ --config\.unified\.transformer\.remat=", out)


@pytest.mark.slow
def test_the_codec_step_of_eight_cpu_devices_is_compiled_with_its_exchanges(config, tmp_path):
    """A process of its own: this one has a single device."""
    command = [sys.executable, "-m", "unicom_jax.cli", "plan", config, "--topology=cpu:8"]
    flags = ["--stage=codec", "--config.mesh=data=2,fsdp=4", f"--keep={tmp_path}"]
    done = subprocess.run(
        [*command, *flags],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "8 devices, cpu:8 (compiled)" in done.stdout
    assert re.search(r"all-reduce\s*│ data", done.stdout)
    assert re.search(r"all-gather\s*│ fsdp", done.stdout)
    assert "num_partitions=8" in (tmp_path / "codec.hlo").read_text()[:20_000]
