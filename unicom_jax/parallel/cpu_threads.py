"""Threads for the CPU devices that XLA_FLAGS requests, as on a machine without accelerators."""

from __future__ import annotations

import os
import re

DEVICE_COUNT = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def enough_cpu_threads() -> None:
    """Gives XLA:CPU two threads per device, unless NPROC sets their number; call before JAX starts.

    XLA starts one thread per core. A device that waits for the others in a collective keeps its
    thread, so with more devices than threads all may wait, until XLA aborts the process
    ("Termination timeout for rendezvous").
    """
    if counts := DEVICE_COUNT.findall(os.environ.get("XLA_FLAGS", "")):
        threads = max(os.cpu_count() or 1, 2 * int(counts[-1]))
        os.environ.setdefault("NPROC", str(threads))
