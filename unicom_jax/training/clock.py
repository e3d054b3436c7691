"""Where the time goes: rates since the last report, and the share of it that moved training on.

Goodput is the time of the steps whose result was kept, divided by all time since the stage began:

    began ─ compile ─ steps ─ save ─ steps ─ killed ─ (nothing runs) ─ compile ─ steps ─ eval ─ now
                      ▓▓▓▓▓          lost                              ▓▓▓▓▓

Not counted as useful are: starting, compiling and restarting, steps that were skipped, that a crash
lost or a rollback took back, saves, evaluation, samples, and the time in which nothing ran. Steps
include what they wait for data; `data_wait` says how much that is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import jax

from unicom_jax.interop.atomic import write_text

# Metrics that are the clock's: equal runs differ in them.
CLOCK = (
    *("time", "time/save", "time/eval", "time/sample", "goodput"),
    *("steps_per_second", "tokens_per_second", "mfu", "data_wait"),
)
logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Window:
    """Time and work since the last report, or since training began.

    Attributes:
      waited: seconds for the next batch.
      paused: seconds of what is no step.
      steps: taken in the window.
    """

    started: float = dataclasses.field(default_factory=lambda: time.perf_counter())
    waited: float = 0.0
    paused: float = 0.0
    steps: int = 0

    @property
    def seconds(self) -> float:
        """Of the window's steps."""
        return time.perf_counter() - self.started - self.paused

    def rates(self, tokens: int, flops: float, peak: float | None) -> dict[str, float]:
        seconds = self.seconds
        rates = {
            "steps_per_second": self.steps / seconds,
            "tokens_per_second": self.steps * tokens / seconds,
            "data_wait": self.waited / seconds,
        }
        if peak:
            rates["mfu"] = self.steps * flops / seconds / (peak * jax.device_count())
        return rates


class Clock:
    """The time of one stage, over all processes that trained it one after the other.

    `goodput.json` in the stage's directory keeps when it first began, and how much of the time was
    useful at each checkpoint: a process that starts at one of them knows what those before it did.

    Args:
      step: the process begins there.
      skipped: updates that were skipped until then.
      updates: in each step (`Stage.inner_steps`).
      active: whether this process writes the file.

    Attributes:
      window: since the last report.
      paused: seconds of "save" and "eval" in this process.
    """

    def __init__(
        self,
        directory: Path,
        step: int = 0,
        skipped: int = 0,
        *,
        updates: int = 1,
        active: bool = True,
    ) -> None:
        self._path, self._active = directory / "goodput.json", active
        self._began, self._kept = _read(self._path) if step else (time.time(), {})
        self._useful, self._skipped = self._kept.get(step, 0.0), skipped
        self._updates = updates
        self.window, self.paused = Window(), Counter()

    @contextlib.contextmanager
    def pause(self, kind: str) -> Iterator[None]:
        """What happens inside is no part of the window's steps."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.paused[kind] += seconds
        self.window.paused += seconds

    def report(self, skipped: int, *, compiled: bool) -> dict[str, float]:
        """`goodput`, and `time/<what>`; a new window begins.

        Args:
          skipped: updates of the stage that were skipped until now.
          compiled: the window's time went into compiling.
        """
        window, new = self.window, (skipped - self._skipped) / self._updates
        if window.steps and not compiled:
            self._useful += window.seconds * max(window.steps - new, 0) / window.steps
        self._skipped, self.window = skipped, Window()
        paused = {f"time/{kind}": seconds for kind, seconds in self.paused.items()}
        return {"goodput": self.goodput, **paused}

    @property
    def goodput(self) -> float:
        """The share of useful time, by the last report."""
        return self._useful / max(time.time() - self._began, 1e-9)

    def keep(self, step: int) -> None:
        """Notes the useful time of the checkpoint of `step`, which is just being saved."""
        self._kept[step] = self._useful + self.window.seconds * bool(self.window.steps)
        if not self._active:
            return
        record = {"began": self._began, "useful": self._kept}
        try:
            write_text(self._path, json.dumps(record))
        except OSError as error:  # a checkpoint that fails reports itself
            logger.warning("%s; goodput may start again from 0", error)

    def go_back(self, step: int, skipped: int) -> None:
        """Training continues from the checkpoint of `step`: later steps do not count as useful."""
        self._kept = {at: useful for at, useful in self._kept.items() if at <= step}
        self._useful, self._skipped = self._kept.get(step, 0.0), skipped
        self.window = Window()


def _read(path: Path) -> tuple[float, dict[int, float]]:
    """When the stage began, and its useful seconds by checkpoint; anew where that is not known."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record["began"], {int(step): useful for step, useful in record["useful"].items()}
    except (OSError, ValueError, KeyError):
        return time.time(), {}
