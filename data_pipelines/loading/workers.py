"""The worker processes of a loader: each says who it is, and all end for certain.

Grain asks its workers to stop and waits, forever if one hangs. So each worker leaves its number
in a folder of the loader, and closing kills those that are still there after a while.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import pathlib
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable

GRACE = 10.0  # seconds that workers have to end by themselves


def new_folder() -> pathlib.Path:
    """An empty folder in which workers leave their process numbers."""
    return pathlib.Path(tempfile.mkdtemp(prefix="unicom-workers-"))


def begin_worker(folder: pathlib.Path, index: int, count: int) -> None:
    """What a worker process does first: it says who it is, leaves Ctrl-C to its trainer, and ends
    when that one ends."""
    try:
        (folder / str(os.getpid())).touch()
    except FileNotFoundError:  # the loader was closed meanwhile
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format=f"! data worker {index} of {count}: %(message)s")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A trainer that is killed cannot end its workers, which would hold their memory forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def end_workers(close: Callable[[], None], folder: pathlib.Path) -> None:
    """Closes an iterator whose workers began with `folder`, and returns when all of them are gone.

    Args:
      close: of the iterator. It may block as long as a worker hangs.
    """
    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(GRACE)
    names = {path.name for path in folder.iterdir()}
    shutil.rmtree(folder, ignore_errors=True)  # those that only begin now end themselves
    left = [child for child in multiprocessing.active_children() if str(child.pid) in names]
    for child in left:
        with contextlib.suppress(OSError):
            child.kill()
    for child in left:
        child.join()
    closing.join(GRACE)  # what a killed worker has half written may keep this thread forever
