"""Threads for CPU devices that XLA_FLAGS asks for, as on a machine without accelerators."""

from __future__ import annotations

import os
import re

DEVICE_COUNT = re.compile(r"--xla_force_host_platform_device_count=(\d+)")


def enough_cpu_threads() -> None:
    """Gives XLA:CPU two threads a device, unless NPROC says how many; before JAX starts.

    XLA makes one thread a core. A device that waits in a collective for the others keeps its
    thread, so with more devices than threads all of them may wait, until XLA aborts the process
    ("Termination timeout for rendezvous").
    """
    if counts := DEVICE_COUNT.findall(os.environ.get("XLA_FLAGS", "")):
        threads = max(os.cpu_count() or 1, 2 * int(counts[-1]))
        os.environ.setdefault("NPROC", str(threads))
