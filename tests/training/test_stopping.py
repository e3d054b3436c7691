"""SIGTERM and Ctrl-C: the run saves, says so, and later ends as if it had never been stopped."""

from __future__ import annotations

import io
import os
import signal

import pytest
from rich.console import Console

from tests.training.conftest import config, go
from tests.training.test_resume import losses
from unicom_jax import cli
from unicom_jax.runs import checkpoint as files
from unicom_jax.training.run import run_stages
from unicom_jax.training.stopping import Stopped, stop_signals


@pytest.fixture(autouse=True)
def not_started_by_nohup():
    """Tests that `nohup` starts inherit an ignored SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def stop_after(steps: int):
    """An `asked_to_stop` that says yes from the given question on; one comes before a stage."""
    asked = iter(range(100))
    return lambda: next(asked) >= steps


def go_until(workdir, *stages: str, steps: int) -> str:
    """Trains until the `steps`-th step of the first stage; the line it ends with."""
    console = Console(file=io.StringIO(), width=1000)
    with pytest.raises(Stopped) as stopped:
        run_stages(config(), workdir, console, stages, asked_to_stop=stop_after(steps))
    return str(stopped.value)


def test_a_stopped_stage_is_saved_at_its_step_and_ends_as_if_never_stopped(whole, copy):
    workdir = copy("pretrain")
    line = go_until(workdir, "pretrain", steps=1)
    assert line == "pretrain: stopped and saved at step 3 of 4; run the same command to resume"
    assert files.stage_steps(workdir, "pretrain") == [2, 3]
    assert "resumes from the checkpoint of step 3" in go(workdir, "pretrain")
    assert losses(workdir, "pretrain") == losses(whole, "pretrain")


def test_a_stop_in_the_last_step_ends_the_stage_and_does_not_begin_the_next(copy):
    workdir = copy("codec")
    line = go_until(workdir, "codec", "pretrain", steps=2)
    assert line == "stopped before stage pretrain; run the same command to resume"
    assert files.stage_steps(workdir, "codec")[-1] == 4
    assert (workdir / "codec" / "stage.json").is_file()


@pytest.mark.parametrize("number", ["TERM", "INT", "HUP", "USR1", "XCPU"])
def test_the_first_signal_is_remembered(number, capfd):
    with stop_signals() as asked_to_stop:
        assert not asked_to_stop()
        os.kill(os.getpid(), signal.Signals[f"SIG{number}"])
        assert asked_to_stop()
    assert "stopping after the next save" in capfd.readouterr().err


def test_a_signal_that_is_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    with stop_signals() as asked_to_stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert not asked_to_stop()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_a_signal_is_remembered_where_stderr_is_gone(monkeypatch):
    def gone(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", gone)
    with stop_signals() as asked_to_stop:
        os.kill(os.getpid(), signal.SIGHUP)
        assert asked_to_stop()


def test_a_second_ctrl_c_interrupts():
    with stop_signals() as asked_to_stop, pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert asked_to_stop()


def test_signals_mean_what_they_meant_before_once_training_is_over():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_signals():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_command_ends_with_status_75_and_one_line(monkeypatch, capsys, tmp_path):
    def stop(*args):
        raise Stopped("encoder: stopped and saved at step 3 of 4; run the same command to resume")

    monkeypatch.setattr("unicom_jax.training.run.run_stages", stop)
    flags = ["train", "--config=experiments/quickstart.py", f"--workdir={tmp_path / 'new'}"]
    assert cli.main(flags) == 75
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("unicom train: encoder: stopped and saved at step 3 of 4")
