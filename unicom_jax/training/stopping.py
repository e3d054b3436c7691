"""Being stopped: SIGTERM, as schedulers send it before they take a machine, and Ctrl-C."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is lost, the same command goes on


class Stopped(Exception):
    """Training was asked to stop and has saved. One line that says where it stands."""

    exit_status = STATUS


class StopSignals:
    """Within it, SIGTERM and the first SIGINT are remembered instead of ending the process.

    Calling it says whether one came. A second SIGINT interrupts at once.
    """

    def __init__(self) -> None:
        self._heard = False

    def __call__(self) -> bool:
        return self._heard

    def __enter__(self) -> StopSignals:
        signals = (signal.SIGTERM, signal.SIGINT)
        self._before = {number: signal.signal(number, self._hear) for number in signals}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self._heard and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._heard = True
        # Not print: the handler may run in the middle of another one.
        hint = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
        os.write(2, f"! stopping after the next save{hint}\n".encode())
