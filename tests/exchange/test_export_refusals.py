"""What `unicom export` refuses, in one line, and that nothing is left half written."""

from __future__ import annotations

import errno
import shutil

import numpy as np
import pytest

from tests.exchange.test_export import same_files
from tests.runs.workdirs import write_run
from tests.tiny import tiny_config
from unicom_jax.cli import main
from unicom_jax.config import ConfigError
from unicom_jax.exchange import export as exporting
from unicom_jax.exchange import written
from unicom_jax.exchange.export import export
from unicom_jax.exchange.written import Options
from unicom_jax.inference import verify
from unicom_jax.interop.tensors import write_tensors
from unicom_jax.runs.items import CheckpointError
from unicom_jax.runs.weights import Choice


def error_line(capsys, *arguments) -> str:
    assert main(["export", *map(str, arguments)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_a_sequence_that_the_exported_code_cannot_write_is_refused_by_its_key():
    exporting.check_format(tiny_config())
    for key, value, known in (
        ("data.policy", "pad", "fixed or naflex or bucket or bucket_walk"),
        ("data.understood_policy", "pad", "same"),
    ):
        with pytest.raises(
            ConfigError, match=f"supports only {key}={known}, not {value}; export a"
        ):
            exporting.check_format(tiny_config(**{key.replace(".", "__"): value}))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("qwen3", "is of the family qwen2; use --to=qwen2"),
        ("autoencoder", "it paints pixels and has no autoencoder"),
        ("flux", "its pixel decoder is a DiT of our own"),
    ],
)
def test_a_part_that_the_model_lacks_is_named(run, tmp_path, capsys, part, message):
    line = error_line(capsys, f"--checkpoint={run}", f"--to={part}", tmp_path / "out")
    assert message in line and not list(tmp_path.iterdir())


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    line = error_line(capsys, f"--checkpoint={tmp_path}", "--to=pytorch", tmp_path / "out")
    assert "is no checkpoint" in line and not (tmp_path / "out").exists()


def test_a_folder_that_is_there_stays_unless_it_may_be_replaced(run, exported, tmp_path, capsys):
    target = shutil.copytree(exported, tmp_path / "out")
    (target / "mine.txt").write_text("kept")
    line = error_line(capsys, f"--checkpoint={run}", "--to=pytorch", target)
    assert "already exists" in line and "--overwrite" in line
    assert (target / "mine.txt").exists()
    flags = [f"--checkpoint={run}", "--to=pytorch", "--overwrite", str(target)]
    assert main(["export", *flags]) == 0
    assert not (target / "mine.txt").exists() and (target / "model.safetensors").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_run_or_any_other_folder_is_never_overwritten(run, tmp_path, capsys):
    for target in (run, run.parent):
        line = error_line(capsys, f"--checkpoint={run}", "--to=pytorch", "--overwrite", target)
        assert "is not an earlier export, so it is not overwritten" in line
    assert (run / "config.json").exists()


def test_a_link_is_not_replaced(run, exported, tmp_path, capsys):
    (tmp_path / "link").symlink_to(exported)
    flags = [f"--checkpoint={run}", "--to=pytorch", "--overwrite", tmp_path / "link"]
    assert "is a link; name the folder itself" in error_line(capsys, *flags)


def test_a_full_disk_is_reported_with_the_folder_and_the_fix(run, tmp_path, monkeypatch, capsys):
    def full(*args, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(written, "store_weights", full)
    line = error_line(capsys, f"--checkpoint={run}", "--to=pytorch", tmp_path / "out")
    assert "out was not written, its disk is full" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_on_the_way_leaves_what_was_there(
    run, exported, tmp_path, monkeypatch, overwrite
):
    target = tmp_path / "out"
    if overwrite:
        shutil.copytree(exported, target)

    def fail(*args, **options):
        raise OSError("no space left on device")

    monkeypatch.setattr(written, "store_weights", fail)
    with pytest.raises(OSError, match="no space"):
        export(run, target, Options(overwrite=overwrite))
    assert [path.name for path in tmp_path.iterdir()] == (["out"] if overwrite else [])
    assert not overwrite or same_files(target, exported)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-shard-size=big"], "--max-shard-size=big: give a size like 5GB"),
        (["--to=siglip2", "--verify"], "--verify compares whole models"),
    ],
)
def test_flags_that_mean_nothing_are_named(run, tmp_path, capsys, flags, message):
    flags = flags if any("--to" in flag for flag in flags) else [*flags, "--to=pytorch"]
    assert message in error_line(capsys, f"--checkpoint={run}", *flags, tmp_path / "out")


def test_an_unknown_type_is_refused_with_the_known_ones(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["export", f"--checkpoint={run}", "--to=pytorch", "--dtype=fp8", str(tmp_path / "o")])
    assert "fp32" in capsys.readouterr().err


def test_without_torch_one_line_says_what_to_install(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(verify.importlib.util, "find_spec", lambda name: None)
    line = error_line(capsys, f"--checkpoint={run}", "--to=pytorch", "--verify", tmp_path / "out")
    assert "pip install torch==2.13.0" in line and not (tmp_path / "out").exists()


def test_averages_that_a_run_lacks_are_refused(tmp_path):
    workdir = write_run(tmp_path / "run")
    with pytest.raises(CheckpointError, match="no averaged weights; leave --weights out"):
        export(workdir, tmp_path / "out", Options(choice=Choice("ema")))


def test_a_value_that_float16_cannot_hold_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a has values that float16 cannot hold; write bf16"):
        write_tensors(tmp_path, {"a": (1,)}, lambda _: np.array([1e6]), np.dtype(np.float16))
