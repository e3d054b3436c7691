"""Growing files of a run in an object store: kept in a local folder and uploaded."""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path

from unicom_jax.core.paths import copy_file, is_remote

EVERY = 60.0  # seconds between two uploads
logger = logging.getLogger(__name__)


class Spool:
    """The local stand-in for a folder of a store; a local folder stands for itself.

    Files are uploaded whole, at most every `EVERY` seconds while training runs. A killed process
    loses what it had not uploaded: the metrics of its last minute. A failed upload is retried with
    the next one.

    Attributes:
      folder: where to write.
    """

    def __init__(self, directory: Path, names: tuple[str, ...]) -> None:
        """`names`: the files in `directory` that are continued; other files start empty."""
        self.folder, self._target, self._held = directory, directory, None
        self._states: dict[str, tuple[int, int]] = {}
        self._last = time.monotonic()
        if not is_remote(directory):
            return
        self._held = tempfile.TemporaryDirectory(prefix="unicom-metrics-")
        self.folder = Path(self._held.name)
        for name in names:
            if (directory / name).is_file():
                copy_file(directory / name, self.folder / name)
                self._states[name] = _state(self.folder / name)

    def push(self, *, now: bool = False) -> None:
        """Uploads what changed, if it is time."""
        if self._held is None or not (now or time.monotonic() - self._last > EVERY):
            return
        self._last = time.monotonic()
        for path in sorted(self.folder.rglob("*")):
            if not path.is_file():
                continue
            name, state = str(path.relative_to(self.folder)), _state(path)
            if self._states.get(name) == state:
                continue
            try:
                copy_file(path, self._target / name)
                self._states[name] = state
            except OSError as error:
                logger.warning("%s: not uploaded (%s)", self._target / name, error)

    def close(self) -> None:
        self.push(now=True)
        if self._held is not None:
            self._held.cleanup()


def _state(path: Path) -> tuple[int, int]:
    """Changes when the file does."""
    about = path.stat()
    return about.st_size, about.st_mtime_ns
