"""One life of a run: a process of its own that something may end.

It is forked from one that has imported everything and started nothing, so a life costs no imports.
What is to happen to it comes with it: nothing in the code under test knows.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from experiments.soak.data import STAGE, Poison, Poisoned
from unicom_jax import cli
from unicom_jax.training import run as training

BALLAST = 2**16  # bytes written at once
HANGS = 1800.0  # seconds after which a life that does not end counts as lost


@dataclasses.dataclass(frozen=True)
class Plan:
    """What happens to a life, by its own count of batches; -1: never.

    Attributes:
      kill: at which batch, with which signal, after how many seconds more.
      full, free: when the disk is filled up, and when it is freed.
      stages: labels of the stages whose batches are counted.
    """

    kill: tuple[int, int, float] = (-1, 0, 0.0)
    full: int = -1
    free: int = -1
    stages: tuple[str, ...] = (STAGE,)


@dataclasses.dataclass(frozen=True)
class End:
    """How it ended: the exit status (negative: the signal), and all that it said."""

    status: int
    said: str


def fill(ballast: Path) -> None:
    """Writes until the disk is full, save for the last 8 KiB."""
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(BALLAST))
        except OSError:
            file.truncate(max(file.tell() - 2 * 4096, 0))


def live(flags: list[str], log: Path, poison: Poison, plan: Plan, ballast: Path) -> End:
    """`unicom train` with `flags` in a process of its own, until its end."""
    status = wait(fork(lambda: _train(flags, poison, plan, ballast), log))
    return End(status, log.read_text(encoding="utf-8", errors="replace"))


def fork(work: Callable[[], int], log: Path) -> int:
    """The id of a new process that does `work`; what it says goes to `log`."""
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    status = 70
    try:
        to = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(to, 1)
        os.dup2(to, 2)
        sys.stdout.reconfigure(line_buffering=True)  # nobody flushes after SIGKILL
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def wait(pid: int) -> int:
    until = time.monotonic() + HANGS
    while time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise TimeoutError(f"a life did not end within {HANGS:g} s")


def _train(flags: list[str], poison: Poison, plan: Plan, ballast: Path) -> int:
    made, count = training.loading.stage_loader, 0

    def happen() -> None:
        nonlocal count
        if count == plan.full:
            fill(ballast)
        if count == plan.free:
            ballast.unlink(missing_ok=True)
        if count == plan.kill[0]:
            _, number, seconds = plan.kill
            threading.Timer(seconds, os.kill, (os.getpid(), number)).start()
        count += 1

    def stage_loader(config, name, tokenizer, part, start, share):
        loader = made(config, name, tokenizer, part, start, share)
        counted = part == "train" and name in plan.stages
        return Poisoned(loader, poison, happen) if counted else loader

    training.loading.stage_loader = stage_loader
    sys.argv = ["unicom", "train", *flags]
    return cli.main()
