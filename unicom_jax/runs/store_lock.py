"""The lock of a workdir in an object store: a file that only one process can create.

A store does not release a lock when its process ends, so the holder rewrites its file every `TOUCH`
seconds. A lock that is `STALE`, or was left by a process of this machine that has ended, is taken
over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

TOUCH = 20.0  # seconds between two heartbeats
STALE = 120.0  # without a heartbeat for this long, the holder counts as dead
TRIES = 3  # attempts to be the one that takes over a lock
BOOT = Path("/proc/sys/kernel/random/boot_id")
NUMBERING = Path("/proc/self/ns/pid")  # containers of one machine number their processes apart
logger = logging.getLogger(__name__)


@contextlib.contextmanager
def store_lock(
    path: Any,
    refuse: Callable[[Mapping[str, Any]], Exception],
    lost: Callable[[], None] = lambda: None,
    name: str = "",
) -> Iterator[None]:
    """Holds the lock whose file in a store is `path`.

    Args:
      path: a `core.paths.StorePath`.
      refuse: content of the file -> the error that names the holder.
      lost: called, on a thread, when another process has taken the lock over.
      name: by which `is_held` knows this holder.

    Raises:
      Exception: the error of `refuse`, if another process holds the lock.
    """
    mine = {**_about(), "name": name}
    _take(path, mine, refuse)
    stop = threading.Event()
    heartbeat = threading.Thread(target=_touch, args=(path, mine, stop, lost), daemon=True)
    heartbeat.start()
    try:
        yield
    finally:
        stop.set()
        heartbeat.join()  # else it could write the file again after it was removed
        with contextlib.suppress(OSError):
            if _read(path) == mine:
                path.unlink(missing_ok=True)


def is_held(path: Any, but_for: str | None = None) -> bool:
    """Whether a process that gives signs of life holds the lock.

    Args:
      but_for: the name of a holder that does not count.
    """
    holder = _read(path)
    if not holder or holder.get("name", "") == but_for:
        return False
    return not _gone(holder, _about()) and _age(path) < STALE


def _about() -> dict[str, Any]:
    boot = BOOT.read_text(encoding="ascii").strip() if BOOT.is_file() else ""
    with contextlib.suppress(OSError):
        boot += f" {os.readlink(NUMBERING)}" if boot else ""
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "boot": boot,
        "id": secrets.token_hex(8),
    }


def _take(path: Any, mine: Mapping[str, Any], refuse: Callable[..., Exception]) -> None:
    holder: Mapping[str, Any] = {}
    for _ in range(TRIES):
        with contextlib.suppress(FileExistsError):
            path.create(json.dumps(mine).encode())
            return
        if (found := _read(path)) is None:  # released just now
            continue
        if found == mine:  # written by an attempt whose answer was lost
            return
        holder = found
        if not _gone(holder, mine) and _age(path) < STALE:
            break
        _evict(path, holder)
    raise refuse(holder)


def _evict(path: Any, holder: Mapping[str, Any]) -> None:
    """Removes the lock of a dead holder, unless another process has taken it over meanwhile.

    Several may see a dead holder at once, and a slow one must not remove the lock of the one that
    was faster. So a lock is removed only by the process that has created the mark beside it.
    """
    mark = path.with_name(f"{path.name}-evicted")
    try:
        mark.create(b"")
    except FileExistsError:
        if _age(mark) < STALE:
            return
    if _read(path) == holder:
        path.unlink(missing_ok=True)
    mark.unlink(missing_ok=True)


def _gone(holder: Mapping[str, Any], mine: Mapping[str, Any]) -> bool:
    """Whether the holder was a process of this machine and has ended."""
    if not mine["boot"] or any(holder.get(key) != mine[key] for key in ("host", "boot")):
        return False
    try:
        os.kill(int(holder["process"]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, KeyError):
        return False
    return False


def _read(path: Any) -> dict[str, Any] | None:
    """The holder; {}: the file does not say; None: there is no file."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _age(path: Any) -> float:
    """Seconds since the last heartbeat, by the store's clock."""
    now = path.with_name(f"{path.name}-{secrets.token_hex(4)}")
    try:
        now.write_bytes(b"")
        return now.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:  # released just now
        return STALE
    finally:
        now.unlink(missing_ok=True)


def _touch(
    path: Any, mine: Mapping[str, Any], stop: threading.Event, lost: Callable[[], None]
) -> None:
    while not stop.wait(TOUCH):
        try:
            if (found := _read(path)) and found != mine:
                logger.warning(
                    "%s: process %s on %s took this workdir over, because this one gave no sign of "
                    "life for %d seconds; stop one of them",
                    *(path.parent, found.get("process"), found.get("host"), STALE),
                )
                lost()
                return
            if found is None:  # removed: another process may be creating its own
                with contextlib.suppress(FileExistsError):
                    path.create(json.dumps(mine).encode())
            else:
                path.write_bytes(json.dumps(mine).encode())
        except OSError as error:  # the next attempt may succeed
            logger.warning("%s: %s", path, error)
