"""The worker processes of a loader, each of which records its process number, so that all of them
can be ended for certain.

Grain asks its workers to stop and waits, forever if one hangs. So each worker leaves its process
number in a folder of the loader, and closing kills those that are still alive after `GRACE`.
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
    """What a worker process does first: it records its process number, leaves Ctrl-C to its
    trainer, and arranges to end when the trainer ends."""
    try:
        (folder / str(os.getpid())).touch()
    except FileNotFoundError:  # the loader has been closed in the meantime
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(format=f"! data worker {index} of {count}: %(message)s")
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this worker with its trainer: a killed trainer cannot end its workers, which would hold
    their memory forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def end_workers(close: Callable[[], None], folder: pathlib.Path) -> None:
    """Closes an iterator whose workers registered in `folder`, and returns when all have ended.

    Args:
      close: closes the iterator. It may block for as long as a worker hangs.
    """
    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(GRACE)
    names = {path.name for path in folder.iterdir()}
    shutil.rmtree(folder, ignore_errors=True)  # workers that only start now end themselves
    left = [child for child in multiprocessing.active_children() if str(child.pid) in names]
    for child in left:
        with contextlib.suppress(OSError):
            child.kill()
    for child in left:
        child.join()
    closing.join(GRACE)  # a killed worker's incomplete message may block this thread forever
