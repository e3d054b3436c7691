"""Runs of the toy stage on batches that differ, some of them bad, with interruptions."""

from __future__ import annotations

import io
import json
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import chex
import numpy as np
import pytest
from rich.console import Console

from tests.training import test_step
from unicom_jax.training.loop import LoopConfig, train


class Killed(BaseException):
    """What a test ends a run with; nothing in the code under test catches it."""


class Stream:
    """Batch n is a function of n; those of `bad` hold NaN, those of `large` large numbers.

    Attributes:
      read: numbers of the batches that were read.
    """

    def __init__(self, start: int, bad=(), large=(), skip: range = range(0), kill_at: int = -1):
        self.next, self.bad, self.large, self.skip = start, bad, large, skip
        self.kill_at, self.read, self.counts = kill_at, [], Counter()

    def __next__(self):
        number, self.next = self.next, self.next + 1
        if number == self.kill_at:
            raise Killed
        number += len(self.skip) * (bool(self.skip) and number >= self.skip.start)
        self.read.append(number)
        made = test_step.batch()
        made["x"] = made["x"] + np.float32(number % 7)
        if number in self.bad:
            made["x"][0, 0] = np.nan
        if number in self.large:
            made["y"] = made["y"] * 1000
        return made

    def close(self):
        pass


class Run:
    """One life of a run in `directory`: what it read, said and ended with."""

    def __init__(
        self,
        directory: Path,
        *,
        stream: dict | None = None,
        stop: Callable[[], bool] = lambda: False,
        trainer: dict | None = None,
        **settings,
    ) -> None:
        self.streams: list[Stream] = []
        self.console = Console(file=io.StringIO(), width=1000)
        self.directory, self.weights, self.error = directory, None, None

        def batches(start: int) -> Stream:
            self.streams.append(Stream(start, **(stream or {})))
            return self.streams[-1]

        config = LoopConfig(**{"steps": 8, "log_every": 1, "save_every": 3, **settings})
        try:
            self.weights = train(
                test_step.trainer(**(trainer or {})),
                {},
                batches,
                lambda start: Stream(start),
                config,
                directory,
                self.console,
                asked_to_stop=stop,
            )
        except (Exception, Killed) as error:
            self.error = error
            wait_for_saves()  # that of a killed process would not continue either

    @property
    def said(self) -> str:
        return self.console.file.getvalue()

    @property
    def lines(self) -> list[dict]:
        return [json.loads(line) for line in (self.directory / "metrics.jsonl").open()]

    @property
    def curve(self) -> list[tuple]:
        """What of the metrics is not the clock's, nor this process's own count."""
        names = ("step", "loss", "gradient_norm", "skipped_steps", "rollbacks", "data_offset")
        return [tuple(line[name] for name in names) for line in self.lines if "loss" in line]


def assert_resumes_to_the_last_bit(directory: Path, toy: Callable[[], dict], **settings) -> Run:
    """A run that was killed between saves ends as one that was not, which is returned."""
    whole = Run(directory / "whole", trainer=toy(), **settings)
    killed = Run(directory / "killed", trainer=toy(), stream={"kill_at": 5}, **settings)
    assert killed.error is not None
    resumed = Run(directory / "killed", trainer=toy(), **settings)
    assert whole.error is None and resumed.error is None
    chex.assert_trees_all_equal(whole.weights, resumed.weights, strict=True)
    assert whole.curve == resumed.curve
    return whole


def wait_for_saves() -> None:
    for thread in threading.enumerate():
        if thread.name == "save_finalize":
            threading.Thread.join(thread)  # Orbax's own raises what the save met


def assert_trees_differ(left, right) -> None:
    """Of one structure, with other values in some leaf."""
    with pytest.raises(AssertionError, match="Values not exactly equal"):
        chex.assert_trees_all_equal(left, right)
