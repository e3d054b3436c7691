"""Storage that refuses a checkpoint: a full disk, an exceeded quota, a failing device."""

from __future__ import annotations

import glob
import logging
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath

HALF_WRITTEN = "*.orbax-checkpoint-tmp*"  # Orbax renames a folder when all of it is there
SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")  # as TensorStore, which writes the arrays, says


def storage_problem(error: BaseException | str | None) -> str:
    """What the system said when it refused to write, in a few words; "" for any other error."""
    found = SYSTEM_ERROR.search(str(error))
    code = int(found[1]) if found else getattr(error, "errno", None)
    if code is None:
        return ""
    return os.strerror(code) if found or isinstance(error, OSError) else ""


def remove_half_written(directory: Path) -> None:
    """Frees what saves that failed, or were killed, left behind. No save may be under way."""
    if jax.process_index() == 0:
        for path in directory.glob(HALF_WRITTEN):
            shutil.rmtree(path, ignore_errors=True)


def take_folders_literally() -> None:
    """From now on `epath.Path.glob` takes only its argument as a pattern, not the path before it.

    Orbax looks for the parts of a checkpoint with it. In a folder such as `lr[3e-4]` etils finds
    none, so that Orbax drops them in silence and leaves checkpoints that nobody can read.
    """
    local = type(epath.Path(os.sep))
    found = local.glob
    if getattr(found, "literal", False):
        return

    def below(self: epath.Path, pattern: str) -> Iterator[epath.Path]:
        folder = os.fspath(self)
        if glob.escape(folder) == folder:
            return found(self, pattern)
        return (local(path) for path in glob.glob(os.path.join(glob.escape(folder), pattern)))

    below.literal = True
    local.glob = below


class StorageLog(logging.Filter):
    """For absl's logger: Orbax's threads log such a problem, and all that follows from it, in many
    lines each; the filter reports it in one.

    Attributes:
      problem: the last one that was logged; whoever begins a save sets it to "".
    """

    def __init__(self) -> None:
        super().__init__()
        self.problem = ""

    def filter(self, record: logging.LogRecord) -> bool:
        error, text = (record.exc_info or (None, None))[1], record.getMessage()
        found = storage_problem(error) or storage_problem(text)
        self.problem = found or self.problem
        follows = self.problem and HALF_WRITTEN.strip("*") in f"{text} {error}"
        return not (found or follows)


LOG = StorageLog()  # one, as there is one logger: a second would not hear what the first holds back
