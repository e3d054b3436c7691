"""The soak finds what is lost, and in a short one nothing is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.soak import check, policies
from experiments.soak.__main__ import KILL, STOP, Soak
from experiments.soak.data import LOG_EVERY, MAX_SKIPPED, SAVE_EVERY, STAGE, make_poison
from experiments.soak.life import End, Plan, fork, wait

ROOT = Path(__file__).resolve().parents[2]
RESUMES = f"{STAGE}: resumes from the checkpoint of step 10\n"


@pytest.fixture
def soaked(tmp_path) -> Soak:
    """A run with checkpoints of steps 5 and 10."""
    for step in (5, 10):
        for item in check.ITEMS:
            folder = tmp_path / "soaked" / STAGE / "checkpoints" / str(step) / item
            folder.mkdir(parents=True)
            (folder / "file").write_bytes(bytes(100))
    return Soak(tmp_path, tmp_path, np.random.default_rng(0), has_disk=True)


KILLED = Plan((3, signal.SIGKILL, 0.0))


def test_a_life_that_began_at_the_newest_checkpoint_and_was_killed_lost_nothing(soaked):
    soaked.account(1, KILLED, End(-9, RESUMES), expected=10)
    assert soaked.lost == [] and soaked.counts[KILL] == 1


@pytest.mark.parametrize(
    ("end", "plan", "line"),
    [
        (End(-9, RESUMES.replace("10", "5")), KILLED, "began at step 5, but 10 was saved"),
        (End(-9, ""), KILLED, "began at step 0, but 10 was saved"),
        (End(-9, RESUMES), Plan(), "status -9"),
        (End(1, f"{RESUMES}unicom train: no"), KILLED, "status 1: ['unicom train: no']"),
        (
            End(-9, f"{RESUMES}Traceback (most\n  a\nKeyError: 1"),
            KILLED,
            "a traceback: KeyError: 1",
        ),
        (
            End(75, f"{RESUMES}stopped and saved at step 12 of"),
            KILLED,
            "step 12 was said to be sav",
        ),
    ],
)
def test_what_should_not_have_happened_is_reported(soaked, end, plan, line):
    soaked.account(1, plan, end, expected=10)
    assert len(soaked.lost) == 1 and soaked.lost[0].startswith(f"life 1: {line}")


def test_a_stopped_life_left_its_last_step(soaked):
    end = End(75, f"{RESUMES}stopped and saved at step 10 of 40")
    soaked.account(1, Plan((3, signal.SIGTERM, 0.0)), end, expected=10)
    assert soaked.lost == [] and soaked.counts[STOP] == 1


def test_a_damaged_checkpoint_is_not_expected_until_it_is_written_again(soaked):
    while not soaked.damaged:
        soaked.damage()
    assert list(soaked.damaged) == [10] and soaked.sound() == [5]
    newest = soaked.workdir / STAGE / "checkpoints" / "10"
    newest.rename(newest.with_name("away"))
    newest.mkdir()
    assert soaked.sound() == [5, 10]


def test_the_long_run_of_bad_batches_is_long_enough_to_be_gone_back_from():
    for seed in range(20):
        poison = make_poison(np.random.default_rng(seed), 100)
        looks = range(LOG_EVERY, 120, LOG_EVERY)
        streaks = [sum(n in poison for n in range(look - MAX_SKIPPED, look)) for look in looks]
        assert max(streaks) >= MAX_SKIPPED and poison.long.start > 2 * SAVE_EVERY


def test_a_life_is_a_process_whose_status_and_words_come_back(tmp_path):
    def work() -> int:
        os.write(1, b"alive\n")  # pytest has taken Python's own standard output
        return 7

    assert wait(fork(work, tmp_path / "log")) == 7
    assert (tmp_path / "log").read_text() == "alive\n"
    assert wait(fork(lambda: os.kill(os.getpid(), signal.SIGKILL), tmp_path / "log")) == -9


def test_turns_are_long_enough_for_the_kills():
    for kills in (1, 3, 20, 50):
        assert len(policies.TURNS) * policies.steps_for(kills) >= kills * policies.MOST / 2


@pytest.mark.slow
@pytest.mark.parametrize("module", ["experiments.soak", "experiments.soak.policies"])
def test_nothing_is_lost_in_a_short_soak(tmp_path, module):
    command = [sys.executable, "-m", module, "--kills=3", f"--folder={tmp_path}/soak"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
