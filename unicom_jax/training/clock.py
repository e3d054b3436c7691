"""Where the time goes: rates since the last report, and the share of useful time (goodput).

Goodput is the time of the steps whose result was kept, divided by all time since the stage began:

    began ─ compile ─ steps ─ save ─ steps ─ killed ─ (nothing runs) ─ compile ─ steps ─ eval ─ now
                      ▓▓▓▓▓          lost                              ▓▓▓▓▓

Not useful are: starting, compiling and restarting; steps that were skipped, lost in a crash or
undone by a rollback; saves, evaluation, samples; and time in which nothing ran. The time of steps
includes waiting for data; `data_wait` says how much.
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

# Metrics that depend on time: equal runs differ in them.
CLOCK = (
    *("time", "time/save", "time/eval", "time/sample", "goodput"),
    *("steps_per_second", "tokens_per_second", "mfu", "data_wait"),
)
logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Window:
    """Time and work since the last report, or since training began.

    Attributes:
      waited: seconds of waiting for batches.
      paused: seconds outside steps.
      steps: steps taken in the window.
    """

    started: float = dataclasses.field(default_factory=lambda: time.perf_counter())
    waited: float = 0.0
    paused: float = 0.0
    steps: int = 0

    @property
    def seconds(self) -> float:
        """Seconds of the window's steps."""
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
    """The time of one stage, over all processes that have trained it one after the other.

    `goodput.json` in the stage's directory records when the stage first began, and the useful time
    at each checkpoint, so that a process that resumes from one knows what earlier processes did.

    Args:
      step: the step at which the process begins.
      skipped: updates that were skipped until then.
      updates: updates in each step (`Stage.inner_steps`).
      active: whether this process writes the file.

    Attributes:
      window: time and work since the last report.
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
        """Excludes what happens inside from the window's steps."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        self.paused[kind] += seconds
        self.window.paused += seconds

    def report(self, skipped: int, *, compiled: bool) -> dict[str, float]:
        """`goodput` and `time/<what>`; begins a new window.

        Args:
          skipped: updates of the stage that were skipped until now.
          compiled: whether the window's time went into compiling.
        """
        window, new = self.window, (skipped - self._skipped) / self._updates
        if window.steps and not compiled:
            self._useful += window.seconds * max(window.steps - new, 0) / window.steps
        self._skipped, self.window = skipped, Window()
        paused = {f"time/{kind}": seconds for kind, seconds in self.paused.items()}
        return {"goodput": self.goodput, **paused}

    @property
    def goodput(self) -> float:
        """The share of useful time at the last report."""
        return self._useful / max(time.time() - self._began, 1e-9)

    def keep(self, step: int) -> None:
        """Records the useful time of the checkpoint of `step`, which is just being saved."""
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
    """When the stage began, and its useful seconds by checkpoint; starts anew if unknown."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return record["began"], {int(step): useful for step, useful in record["useful"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return time.time(), {}
