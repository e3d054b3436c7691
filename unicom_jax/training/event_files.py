"""Files that grow while training runs. A disk that is full for a while does not stop training."""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

# tensorboardX imports torch if it is installed, which takes two seconds and is not needed here.
_hidden = "torch" not in sys.modules
try:
    if _hidden:
        sys.modules["torch"] = None  # type: ignore[assignment]
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.proto.summary_pb2 import Summary
finally:
    if _hidden:
        del sys.modules["torch"]

FLUSH_SECONDS = 10.0
logger = logging.getLogger(__name__)


class JsonLines:
    """Appends one JSON object per step. Lines that the disk refuses are kept and written later."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._size = path.stat().st_size
        self._pending = b""

    def forget_after(self, step: int) -> None:
        """Drops the lines of later steps, and a last line that a crash has cut short."""
        self.flush()
        self._pending = b"".join(_until(step, self._pending.splitlines(keepends=True)))
        with open(self._file.name, "rb") as lines:
            self._size = sum(map(len, _until(step, lines)))
        self._file.truncate(self._size)  # in place, so that a full disk cannot lose earlier lines

    def write(self, step: int, values: Mapping[str, float]) -> None:
        reported = bool(self._pending)
        self._pending += json.dumps({"step": step, **values}).encode() + b"\n"
        problem = self.flush()
        if problem and not reported:
            logger.warning("%s: %s; metrics are kept in memory", self._file.name, problem.strerror)

    def flush(self) -> OSError | None:
        try:
            written = 0
            while written < len(self._pending):
                written += self._file.write(self._pending[written:])
            self._size, self._pending = self._size + written, b""
        except OSError as error:
            self._file.truncate(self._size)
            return error
        return None

    def close(self) -> None:
        self.flush()
        self._file.close()


def _until(step: int, lines):
    return itertools.takewhile(lambda line: _step_of(line) <= step, lines)


def _step_of(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError):
        return float("inf")


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


class Board:
    """TensorBoard's files, written on the calling thread: tensorboardX's own thread would end at
    the first error and then block training for ever.

    Args:
      after: later steps than this one, in earlier files of the folder, are hidden.
    """

    def __init__(self, directory: Path, after: int = 0) -> None:
        self._directory, self._count, self._events = directory, 0, None
        directory.mkdir(parents=True, exist_ok=True)
        self.forget_after(after)

    def forget_after(self, step: int) -> None:
        if step:
            start = Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
            self._write(start)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        shown = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(Event(step=step, wall_time=time.time(), summary=Summary(value=shown)))

    def show(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Pictures (H, W, 3) uint8 by name."""
        shown = [
            Summary.Value(
                tag=name,
                image=Summary.Image(
                    height=picture.shape[0],
                    width=picture.shape[1],
                    colorspace=3,
                    encoded_image_string=_png(picture),
                ),
            )
            for name, picture in pictures.items()
        ]
        self._write(Event(step=step, wall_time=time.time(), summary=Summary(value=shown)))

    def _write(self, event: Event) -> None:
        try:
            if self._events is None:
                # Processes that start in the same second on one host would share a file.
                suffix = f".{os.getpid()}.{self._count}"
                self._events = EventsWriter(str(self._directory / "events"), suffix)
                self._count, self._flushed = self._count + 1, 0.0
            self._events.write_event(event)
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._events.flush()
                self._flushed = time.monotonic()
        except OSError:  # a record may be incomplete, so the next one starts a new file
            self._events = None

    def close(self) -> None:
        if self._events is not None:
            try:
                self._events.close()
            except OSError as error:
                logger.warning("%s: %s; its last points are lost", self._directory, error.strerror)
