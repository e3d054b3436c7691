"""What a record can serve: questions, edits or a thought that it has, captions or a picture that it
lacks.

A record's traits are one byte, a sum of `TRAITS` and `LACKS`, so that those of 100 million records
take 100 MB. ArrayRecord files have them beside themselves, in a hidden `.traits.npy` file each.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import uuid
from typing import Any

import numpy as np

from data_pipelines.examples import Example

TRAITS = {"questions": 1, "edits": 2, "thought": 4}  # of an Example, by its field
DOCUMENT = 8  # of a FinishedDocument
LACKS = {"captions": 16, "image": 32}  # what nearly all records have
NEEDS = {**TRAITS, "segments": DOCUMENT}  # by what a task needs
SUFFIX = ".traits.npy"
LOG = logging.getLogger(__name__)


def traits_of(example: Example) -> int:
    """The traits of one example."""
    found = sum(value for name, value in TRAITS.items() if getattr(example, name))
    bare = LACKS["captions"] * (not example.captions) + LACKS["image"] * (example.image is None)
    return found + bare


def traits_of_source(source: Any) -> np.ndarray | None:
    """(N,) uint8 traits of a source's records; None where it does not know them."""
    read = getattr(source, "traits", None)
    return None if read is None else read()


def may_lack(source: Any) -> bool:
    """Whether records of a source may be without a picture or without captions."""
    while hasattr(source, "source"):  # wrappers
        source = source.source
    return getattr(source, "may_lack", False)


def sidecar(records: str | os.PathLike) -> pathlib.Path:
    """The file with the traits of an ArrayRecord file; hidden, so that no pattern finds it."""
    path = pathlib.Path(records)
    return path.with_name(f".{path.stem}{SUFFIX}")


def load_traits(records: str | os.PathLike, count: int) -> np.ndarray | None:
    """The stored traits of an ArrayRecord file of `count` records; None: none, or outdated."""
    path = sidecar(records)
    try:
        if path.stat().st_mtime_ns < pathlib.Path(records).stat().st_mtime_ns:
            return None  # the records were written anew, without their traits
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # EOFError: the file is empty
        return None
    return found if found.shape == (count,) and found.dtype == np.uint8 else None


def store_traits(records: str | os.PathLike, traits: np.ndarray) -> None:
    """Stores the traits of an ArrayRecord file beside it, where that folder can be written to."""
    path = sidecar(records)
    half = path.with_name(f"{path.name}-{uuid.uuid4().hex}.unfinished")  # others may write it too
    try:
        with half.open("wb") as file:
            np.save(file, traits)
        half.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            half.unlink(missing_ok=True)
        LOG.warning(
            "%s: cannot be written (%s); the next start reads the records again",
            path,
            error.strerror,
        )
