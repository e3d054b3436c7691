"""Reports in one line which process of several is lost, before JAX ends the others.

Every process sends heartbeats, a growing number, to the coordination service. Process 0 watches all
of them and records which processes have stopped; the others watch process 0 and its record. A
process that ends normally says so. JAX has heartbeats of its own, on whose loss it aborts a process
with a C++ stack trace; ours have a shorter limit.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable

LOST_STATUS = 76  # EX_PROTOCOL of sysexits.h: another process broke the protocol
STOPPED_STATUS = 75  # status of an error that all processes raise together, after saving
SIGNS, LOST, DONE = "unicom_signs", "unicom_lost", "done"
TICKS = 30  # heartbeats within the time after which a process counts as lost


class Watch:
    """Context of a thread that sends heartbeats and watches those of the others.

    Args:
      client: client of JAX's coordination service.
      seconds: without a heartbeat for this long, a process is lost.
      end: called then, with the line that names the process. By default this process ends.
    """

    def __init__(
        self,
        client,
        index: int,
        count: int,
        seconds: float,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self._client, self._index, self._count, self._seconds = client, index, count, seconds
        self._end = end or self._leave
        self._tick = seconds / TICKS
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="unicom-watch", daemon=True)
        others = range(count) if index == 0 else (0,)
        self._watched = [process for process in others if process != index]

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._left.set()
        self._thread.join()
        # Also after another process's loss: then only that one counts as missing.
        if error is None or getattr(error, "exit_status", 1) in (STOPPED_STATUS, LOST_STATUS):
            with contextlib.suppress(RuntimeError):  # process 0 may have ended normally already
                self._give(DONE)

    def missing(self) -> list[int]:
        """Waits four ticks and returns the processes without a heartbeat in that time. For a
        process that knows that another is gone, but not which."""
        try:
            before = self._signs()
            time.sleep(4 * self._tick)
            after = self._signs()
        except RuntimeError:
            return [0]
        others = (process for process in range(self._count) if process != self._index)
        return [p for p in others if before.get(p) == after.get(p) != DONE]

    def wait_for_others(self) -> None:
        """Process 0 hosts the coordination service, so it waits until the others could read."""
        if self._index == 0:
            time.sleep(6 * self._tick)

    def _run(self) -> None:
        number, reached = 0, time.monotonic()
        seen = dict.fromkeys(self._watched, ("", reached))  # process -> last heartbeat, its time
        while not self._left.wait(self._tick):
            number += 1
            now, lost = time.monotonic(), []
            try:
                self._give(str(number))
                signs = self._signs("" if self._index == 0 else "/0")
                new = {p: s for p, s in signs.items() if p in seen and s != seen[p][0]}
                seen |= {process: (sign, now) for process, sign in new.items()}
                lost, reached = self._agreed(seen, now), now
            except RuntimeError:  # no coordination service: process 0 is gone
                lost = [0] if now - reached > self._seconds else []
            if lost and not self._left.is_set():
                self._end(self._line(lost))
                return

    def _agreed(self, seen: dict[int, tuple[str, float]], now: float) -> list[int]:
        """The lost processes: on process 0 those that it sees, which it sends; else those sent."""
        late = [
            p for p, (sign, came) in seen.items() if sign != DONE and now - came > self._seconds
        ]
        if late and self._index == 0:
            self._client.key_value_set(f"{LOST}/all", " ".join(map(str, late)))
        if late or self._index == 0:
            return late
        sent = self._client.key_value_dir_get(LOST)
        return list(map(int, sent[0][1].split())) if sent else []

    def _give(self, sign: str) -> None:
        self._client.key_value_set(f"{SIGNS}/{self._index}/sign", sign, allow_overwrite=True)

    def _signs(self, of: str = "") -> dict[int, str]:
        """Process -> heartbeat."""
        given = self._client.key_value_dir_get(f"{SIGNS}{of}")
        return {int(key.split("/")[-2]): sign for key, sign in given}

    def _line(self, lost: list[int]) -> str:
        return (
            f"process {', '.join(map(str, lost))} of {self._count} gave no sign for "
            f"{self._seconds:g} s: it is gone or hangs; see its log, then start all of them again"
        )

    def _leave(self, line: str) -> None:
        who = f"unicom (process {self._index} of {self._count})"
        print(f"{who}: {line}", file=sys.stderr, flush=True)
        self.wait_for_others()
        sys.stdout.flush()
        os._exit(LOST_STATUS)
