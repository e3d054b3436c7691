"""Whether an error is the fault of the record, which is then replaced by another, or of the
machine, which is given time to recover before the run ends.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")
PAUSES = (0.1, 0.5, 2.0)  # seconds between attempts to read after a fault of the machine

# What is wrong with one file rather than with the disk, the network or this process.
_RECORDS = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.EACCES,
        errno.EPERM,
        errno.EINVAL,
    }
)
# Looked for in the messages of readers that raise no OSError, such as ArrayRecord's.
_MACHINES = (
    *(errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.ENOMEM),
    *(errno.ESTALE, errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNRESET, errno.ECONNABORTED),
    *(errno.ECONNREFUSED, errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH),
    *(errno.ENETDOWN, errno.EAGAIN, errno.EBUSY, errno.EPIPE),
)
_CURES = {
    errno.EMFILE: "raise the limit of this shell (ulimit -n 65536)",
    errno.ENFILE: "close other programs, or raise the limit of this machine (fs.file-max)",
    errno.ENOSPC: "free space on the disk, then run the same command again",
    errno.EDQUOT: "free space in your quota, then run the same command again",
    errno.ENOMEM: "lower --config.data.workers, prefetch or cache_mb",
    errno.ENOPKG: "install it, then run the same command again",
}
_CURE = "check the disk or the network, then run the same command again"


class RecordError(ValueError):
    """One record that cannot be used; the message names the file, the index and the fix."""


class SourceError(ValueError):
    """A source that cannot be opened or read; the message names the path or key and the fix."""


def one_line(error: BaseException) -> str:
    """First line of an error's message, or its type if there is no message."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def reason_of(error: OSError) -> str:
    """The message of the system, or of the client of an object store, in one line."""
    return error.strerror or one_line(error)


def machine_fault(error: BaseException) -> int | None:
    """The errno of an error that is the machine's fault; None if a record is at fault.

    Running out of file descriptors, a failing disk or a lost connection say nothing about the
    record. A missing file, a wrong checksum and data that cannot be decoded do.
    """
    if isinstance(error, OSError):
        return error.errno if error.errno and error.errno not in _RECORDS else None
    text = str(error)
    return next((code for code in _MACHINES if os.strerror(code) in text), None)


def patiently(read: Callable[[], Value], where: str) -> Value:
    """The result of `read()`, retried after short pauses while the machine is at fault.

    Args:
      where: what is read; begins the message.

    Raises:
      SourceError: the machine does not recover. Any other error of `read` passes unchanged.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except Exception as error:  # ArrayRecord's errors are of several unrelated types
            code = machine_fault(error)
            if code is None:
                raise
            if pause is None:
                reason = reason_of(error) if isinstance(error, OSError) else os.strerror(code)
                raise unreadable(where, reason, code) from None
        time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def unreadable(where: str, reason: str, code: int | None) -> SourceError:
    """The error of a source that the machine cannot read; `code` is the errno."""
    return SourceError(f"{where}: cannot be read ({reason}): {_CURES.get(code, _CURE)}")
