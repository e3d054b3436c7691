"""Storage that refuses a checkpoint: a full disk, an exceeded quota, a failing device."""

from __future__ import annotations

import logging
import os
import re
import shutil
from pathlib import Path

import jax

HALF_WRITTEN = "*.orbax-checkpoint-tmp*"  # Orbax renames a folder when all of it is there
SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")  # as TensorStore, which writes the arrays, says


def storage_problem(error: BaseException | None) -> str:
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


def not_about_storage(record: logging.LogRecord) -> bool:
    """A filter for absl's logger: Orbax's threads log such an error in many lines each, and it is
    told in one."""
    error = record.exc_info[1] if record.exc_info else None
    return not (storage_problem(error) or SYSTEM_ERROR.search(record.getMessage()))
