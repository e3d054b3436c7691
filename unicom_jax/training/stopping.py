"""Stop requests: the signals that schedulers send first, a closed terminal, or Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType


class Stopped(Exception):
    """Training was asked to stop and has saved. One line that names the step."""

    exit_status = 75  # EX_TEMPFAIL of sysexits.h: nothing is lost; the same command resumes


# SIGUSR1: the warning that SLURM's --signal=USR1@120 asks for. SIGXCPU: the soft limit of CPU time.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Within this context the signals of `STOPS` are recorded instead of ending the process. SIGHUP
    stays ignored if it already is, as under nohup.

    Yields a function that tells whether one came. A second SIGINT interrupts at once.
    """
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        if heard and number == signal.SIGINT:
            raise KeyboardInterrupt
        heard.append(number)
        # Not print: the handler may run in the middle of another one.
        hint = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, f"! stopping after the next save{hint}\n".encode())

    before = {
        number: signal.signal(number, hear)
        for number in STOPS
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield lambda: bool(heard)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
