"""Storage that refuses a checkpoint: a full disk, an exceeded quota, a failing device."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jax
from etils import epath

from unicom_jax.core.paths import is_remote, remove_tree
from unicom_jax.runs.workdir import COMMITTED, is_step, is_whole

S3 = "s3://"
HALF_WRITTEN = "*.orbax-checkpoint-tmp*"  # Orbax renames a folder when it is complete
# TensorStore's report of a store that does not answer, after several attempts.
STORE_ERROR = re.compile(r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED): ")
SYSTEM_ERROR = re.compile(r"os_error_code='(\d+)'")  # from TensorStore, which writes the arrays


def storage_problem(error: BaseException | str | None) -> str:
    """The system's reason for refusing to write, in a few words; "" for any other error."""
    found = SYSTEM_ERROR.search(str(error))
    code = int(found[1]) if found else getattr(error, "errno", None)
    if code is None:
        refused = STORE_ERROR.search(str(error))
        return f"the store says {refused[1]}" if refused else ""
    return os.strerror(code) if found or isinstance(error, OSError) else ""


def remove_half_written(directory: Path) -> None:
    """Removes what failed or killed saves left behind. No save may be under way."""
    if jax.process_index() == 0:
        if is_remote(directory):
            steps = [path for path in directory.iterdir() if is_step(path.name)]
            half = [path for path in steps if not is_whole(path)]
            for path in set(steps) - set(half):
                _mark_whole(path)
        else:
            half = list(directory.glob(HALF_WRITTEN))
        for path in half:
            remove_tree(path)


def _mark_whole(step: epath.Path) -> None:
    """Lets Orbax accept a step that was copied into a store."""
    if not (step / COMMITTED).is_file():
        for folder in (*(path for path in step.iterdir() if path.is_dir()), step):
            (folder / COMMITTED).write_text("copied", encoding="utf-8")


def take_folders_literally() -> None:
    """From now on `epath.Path.glob` takes only its argument as a pattern, not the path before it.

    Orbax uses it to look for the parts of a checkpoint. In a folder such as `lr[3e-4]` etils would
    find none, so Orbax would silently drop them and leave unreadable checkpoints.
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


def teach_s3() -> bool:
    """From now on Orbax also writes arrays to `s3://`. TensorStore can do so, but Orbax (0.12)
    knows only `gs://` and takes any other address for a local path.

    Returns:
      Whether this version of Orbax has the functions that are replaced.
    """
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils as specs

    names = ("_use_gcs_driver", "_normalize_path")
    if not all(hasattr(specs, name) for name in names):
        return False
    if not hasattr(gcs_utils, "get_kvstore_for_gcs"):
        return False
    spec_of = gcs_utils.get_kvstore_for_gcs
    if getattr(spec_of, "knows_s3", False):
        return True

    def store_spec(address: str) -> dict:
        if not address.startswith(S3):
            return spec_of(address)
        bucket, _, path = address.removeprefix(S3).partition("/")
        found = {"driver": "s3", "bucket": bucket, "path": path}
        # The variables that boto3 and s3fs read.
        if endpoint := os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"):
            found["endpoint"] = endpoint
        if region := os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"):
            found["aws_region"] = region
        return found

    store_spec.knows_s3 = True
    gcs_utils.get_kvstore_for_gcs = store_spec
    specs._use_gcs_driver = is_remote
    specs._normalize_path = lambda path: (
        path.rstrip("/") if is_remote(path) else os.path.normpath(path)
    )
    return True


class StorageLog(logging.Filter):
    """Filter for absl's logger: Orbax's threads log each storage problem, and all its consequences,
    in many lines; the filter reports it in one.

    Attributes:
      problem: the last problem that was logged; whatever starts a save sets it to "".
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


LOG = StorageLog()  # one, as there is one logger: a second would miss what the first suppresses
