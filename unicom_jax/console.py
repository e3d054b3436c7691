"""What commands print: text as it is, and output that cannot be written ends no work."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, TextIO

from rich.console import Console


class PlainConsole(Console):
    """A console for words of users and files: no markup, no emoji codes, no line breaks of ours.

    In the text `runs/lr[3e-4]` the brackets are no markup. Tables and other renderables keep their
    styles; their cells are text, too.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, emoji=False, **options)

    def print(self, *objects: Any, soft_wrap: bool | None = None, **options: Any) -> None:
        """As rich's; lines of text are not wrapped, so that a path can be copied."""
        if soft_wrap is None:
            soft_wrap = all(isinstance(one, str) for one in objects)
        super().print(*objects, soft_wrap=soft_wrap, **options)


class LastingStream:
    """A text stream whose errors are dropped: a full disk behind it, a reader that has gone."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):  # ValueError: it was closed
            return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def protect_output() -> None:
    """Of a process of ours: neither a full disk behind a log, nor a closed pipe, nor characters
    that the terminal's encoding lacks, ends the work. Call it first."""
    for handle, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(handle)
        except OSError:  # closed: the next file that is opened would get its number
            os.open(os.devnull, mode)
    for handle, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name) or os.fdopen(handle, "w", encoding="utf-8", closefd=False)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
        setattr(sys, name, LastingStream(stream))
    if sys.stdin is not None and hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")


def settle_output() -> None:
    """Writes what waits. What cannot be written is dropped, so that Python's end is silent."""
    for handle, stream in ((1, sys.stdout), (2, sys.stderr)):
        inner = getattr(stream, "_stream", stream)
        try:
            inner.flush()
        except (OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, handle)
            os.close(null)
