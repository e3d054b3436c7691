"""Arrays that worker processes map from a file instead of being sent them.

    ~/.cache/unicom_jax/indices/shared-HOST-HASH.npy      ($XDG_CACHE_HOME in place of ~/.cache)

HASH is that of the content, so processes with equal arrays have one file. It is in use until the
processes that wrote or found it have ended; the next one that shares an array removes it then. A
host removes only its own files, because the locks of other hosts may not be visible to it. An array
that is mapped outlives its file.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import pathlib

import numpy as np

from data_pipelines.sources.in_use import alone, hold, unused
from data_pipelines.sources.index import INDICES, mapped, store
from unicom_jax.core.paths import cache_folder


def shared(array: np.ndarray) -> pathlib.Path | None:
    """A file in the cache folder from which this process's workers can map an array, (N,) uint8;
    None: the folder is not writable.
    """
    digest, prefix = hashlib.sha256(array).digest(), f"shared-{os.uname().nodename}"
    file = cache_folder(INDICES) / f"{prefix}-{digest.hex()[:32]}.npy"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with alone(file.with_name(f".{prefix}.lock")):
            if not _holds(file, digest) and not store(file, len(array), [array]):
                return None
            hold(file)
            # Not just `prefix`-*, which the files of a host HOST-2 match too.
            for other in file.parent.glob(f"{glob.escape(prefix)}-{'[0-9a-f]' * 32}.npy*"):
                if other != file:
                    with contextlib.suppress(OSError), unused(other):
                        other.unlink()
    except OSError:
        return None
    return file


def _holds(file: pathlib.Path, digest: bytes) -> bool:
    with contextlib.suppress(OSError, ValueError, EOFError):
        return hashlib.sha256(mapped(file)).digest() == digest
    return False
