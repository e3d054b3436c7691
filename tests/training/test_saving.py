"""Which checkpoints stay, and saves that storage refuses: nothing that was saved is lost."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess

import chex
import pytest

from tests.training.toy import Run, wait_for_saves
from unicom_jax.runs import checkpoint as files
from unicom_jax.training import saving
from unicom_jax.training.event_files import JsonLines
from unicom_jax.training.held_out import HeldOut
from unicom_jax.training.saving import TrainingError


def steps(directory) -> list[int]:
    return files.stage_steps(directory.parent, directory.name)


# ---- which stay ---------------------------------------------------------------------------------

EVALUATED = {"steps": 6, "save_every": 1, "eval_every": 1, "eval_batches": 1, "keep": 1}


@pytest.fixture
def losses(monkeypatch):
    """Held-out losses by step instead of measured ones."""
    made = dict(enumerate([0.5, 0.3, float("nan"), 0.2, 0.4, 0.6], start=1))

    def evaluate(self, state, frozen):
        return {"eval/loss": made[int(state.step)]}

    monkeypatch.setattr(HeldOut, "evaluate", evaluate)


def test_the_checkpoints_with_the_lowest_held_out_loss_stay_besides_the_last(losses, tmp_path):
    run = Run(tmp_path, keep_best=2, **EVALUATED)
    assert run.error is None and steps(tmp_path) == [2, 4, 6]
    assert json.loads((tmp_path / "stage.json").read_text())["best_step"] == 4
    wanted = {"best": 4, "": 6, "2": 2}
    found = {step: files.chosen_step(tmp_path.parent, tmp_path.name, step) for step in wanted}
    assert found == wanted


def test_the_best_are_remembered_by_a_resumed_run(losses, tmp_path):
    Run(tmp_path, keep_best=1, stream={"kill_at": 5}, **EVALUATED)
    assert steps(tmp_path) == [4, 5]
    Run(tmp_path, keep_best=1, **EVALUATED)
    assert steps(tmp_path) == [4, 6]


def test_without_keep_best_only_the_last_stay(losses, tmp_path):
    Run(tmp_path, **EVALUATED)
    assert steps(tmp_path) == [6]


def test_the_best_of_a_run_without_held_out_losses_is_not_known(tmp_path):
    Run(tmp_path, steps=2, save_every=2)
    with pytest.raises(files.CheckpointError, match="none with a held-out loss .*keep_best"):
        files.chosen_step(tmp_path.parent, tmp_path.name, "best")


def test_the_held_out_loss_is_the_weighted_sum_of_its_terms(tmp_path):
    run = Run(tmp_path, steps=2, eval_every=2, eval_batches=2)
    (line,) = [line for line in run.lines if "eval/loss" in line]
    assert line["eval/loss"] == pytest.approx(line["eval/main"] + 0.5 * line["eval/rare"])


# ---- a full disk --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with space for a few checkpoints, and a way to fill it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a tmpfs")

    def fill(room: int = 0) -> None:
        """Leaves `room` bytes."""
        free = os.statvfs(folder)
        with (folder / "ballast").open("wb", buffering=0) as file:
            file.write(bytes(free.f_bavail * free.f_bsize - room))

    yield folder, fill
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class FullAt:
    """An `asked_to_stop` that fills and frees a disk after given steps, and never stops."""

    def __init__(self, disk, full: int, free: int) -> None:
        self.disk, self.full, self.free, self.step = disk, full, free, 0

    def __call__(self) -> bool:
        self.step += 1
        folder, fill = self.disk
        if self.step in (self.full, self.free):
            wait_for_saves()
        if self.step == self.full:
            fill(room=4096)
        if self.step == self.free:
            (folder / "ballast").unlink()
        return False


def test_a_full_disk_costs_checkpoints_but_not_the_training(small_disk, tmp_path):
    folder = small_disk[0] / "toy"
    run = Run(folder, stop=FullAt(small_disk, 4, 8), steps=10, keep=9)
    assert run.error is None and steps(folder) == [3, 9, 10]
    (line,) = [line for line in run.said.splitlines() if "could not be written" in line]
    assert line.startswith("! toy: the checkpoint of step 6 ") and "No space left on dev" in line
    assert [line["step"] for line in run.lines] == list(range(1, 11))  # they waited in memory
    assert [line["failed_saves"] for line in run.lines][-1] == 1
    calm = Run(tmp_path / "calm", steps=10)
    chex.assert_trees_all_equal(run.weights, calm.weights, strict=True)
    assert [p.name for p in (folder / "checkpoints").iterdir() if not p.name.isdigit()] == []


def test_when_the_last_save_fails_one_line_says_where_the_run_resumes(small_disk, tmp_path):
    folder = small_disk[0] / "toy"
    run = Run(folder, stop=FullAt(small_disk, 5, 99), steps=8)
    assert isinstance(run.error, TrainingError)
    line = str(run.error)
    assert line.startswith("toy: step 8 could not be saved; free space under ")
    assert line.endswith("run the same command to resume from step 3") and "\n" not in line
    (small_disk[0] / "ballast").unlink()
    again = Run(folder, steps=8)
    assert "resumes from the checkpoint of step 3" in again.said
    calm = Run(tmp_path / "calm", steps=8)
    chex.assert_trees_all_equal(again.weights, calm.weights, strict=True)


def refuse(monkeypatch, error: Exception, at: int) -> None:
    """Lets the save of one step fail while it starts."""
    save = saving.save_state

    def save_or_fail(manager, trainer, position, *args):
        if position.next_step == at:
            raise error
        save(manager, trainer, position, *args)

    monkeypatch.setattr(saving, "save_state", save_or_fail)


def test_a_save_that_cannot_begin_is_tried_again_at_the_next(monkeypatch, tmp_path):
    refuse(monkeypatch, OSError(errno.EDQUOT, "Disk quota exceeded"), at=3)
    run = Run(tmp_path)
    assert "checkpoint of step 3 could not be written" in run.said and "quota" in run.said
    assert run.error is None and steps(tmp_path) == [6, 8]


def test_an_error_that_follows_from_the_storages_is_taken_for_it(monkeypatch, tmp_path):
    save = saving.save_state

    def save_or_fail(manager, trainer, position, *args):
        if position.next_step == 3:
            full = OSError(errno.ENOSPC, "No space left on device")
            logging.getLogger("absl").error("a thread failed", exc_info=full)
            raise ValueError("No ArrayMetadata found")
        save(manager, trainer, position, *args)

    monkeypatch.setattr(saving, "save_state", save_or_fail)
    run = Run(tmp_path)
    assert "(No space left on device)" in run.said and steps(tmp_path) == [6, 8]


def test_an_error_that_is_not_the_storages_ends_training(monkeypatch, tmp_path):
    refuse(monkeypatch, ValueError("a bug"), at=3)
    assert str(Run(tmp_path).error) == "a bug"


def test_a_run_frees_what_a_killed_save_left_behind(tmp_path):
    left = tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp" / "params"
    left.mkdir(parents=True)
    Run(tmp_path, steps=2)
    assert not left.parent.exists()


def test_lines_that_the_disk_refused_are_written_when_it_can_in_their_order(small_disk):
    folder, fill = small_disk
    lines = JsonLines(folder / "metrics.jsonl")
    lines.write(1, {"loss": 1.0})
    fill()
    for step in range(2, 400):  # more than what is left of the file's last page
        lines.write(step, {"loss": 1.0})
    said = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert said == list(range(1, len(said) + 1)) and len(said) < 399
    lines.forget_after(300)
    (folder / "ballast").unlink()
    lines.write(301, {"loss": 1.0})
    lines.close()
    said = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").open()]
    assert said == list(range(1, 302))
