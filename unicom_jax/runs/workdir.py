"""The files of a workdir by name, and how the small ones are read. Imports nothing heavy."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicom_jax.config.key import ConfigError
from unicom_jax.core.paths import LFS, is_remote

CONFIG = "config.json"
FACTS = "stage.json"  # of a stage that has ended; no two trainings write the same
HISTORY = "config_history.jsonl"  # what `--allow-change` changed
COMMITTED = "commit_success.txt"  # marks a complete checkpoint in a store, which cannot rename
ROLLOUTS, ROLLOUTS_FILE = "rollouts", "rollouts.json"  # folder of a stage, and its list


def check_name(workdir: str) -> None:
    """Refuses a path below which checkpoints cannot be written.

    Raises:
      ConfigError: the path has a backslash, which TensorStore takes for a slash, or is not UTF-8.
    """
    if is_remote(workdir):
        return
    if "\\" in workdir:
        raise ConfigError(f"--workdir={workdir} has a backslash; use a path without one")
    if any("\ud800" <= sign <= "\udfff" for sign in os.path.abspath(workdir)):
        raise ConfigError(
            f"--workdir={workdir} is not UTF-8; use another name, or set PYTHONUTF8=1 if the "
            "locale is the cause"
        )


def stage_steps(workdir: Path, stage: str) -> list[int]:
    """Finished checkpoints of a stage, oldest first."""
    directory = workdir / stage / "checkpoints"
    if not directory.is_dir():
        return []
    paths = (path for path in directory.iterdir() if is_step(path.name) and path.is_dir())
    if is_remote(workdir):
        paths = (path for path in paths if is_whole(path))
    return sorted(int(path.name) for path in paths)


def is_whole(step: Path) -> bool:
    """Whether the folder of a step in a store is complete: written there, or copied from a disk,
    where Orbax records the end of a save in the step's description."""
    if (step / COMMITTED).is_file():
        return True
    try:
        about = json.loads((step / "_CHECKPOINT_METADATA").read_text(encoding="utf-8"))
        return about["commit_timestamp_nsecs"] is not None
    except (OSError, ValueError, KeyError, TypeError):
        return False


def is_step(name: str) -> bool:
    """Whether the name of a folder is the number of a step."""
    return name.isdecimal() and name == str(int(name))


def read_json(
    path: Path, error: type[Exception], cure: str = "restore it from a copy"
) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
      cure: what to do about a damaged file; it ends the message.

    Raises:
      error: the file is cut, holds something else, or is a pointer that Git LFS has not resolved.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text)
    except UnicodeDecodeError as reason:
        raise error(f"{path} is not UTF-8 text ({reason}); {cure}") from reason
    except json.JSONDecodeError as reason:
        if text.startswith(LFS):
            raise error(
                f"{path} is a pointer of Git LFS, not the file; run git lfs pull"
            ) from reason
        raise error(f"{path} is not JSON ({reason}); {cure}") from reason
    if not isinstance(found, Mapping):
        kind = type(found).__name__
        raise error(f"{path} holds a {kind} where an object is expected; {cure}")
    return dict(found)
