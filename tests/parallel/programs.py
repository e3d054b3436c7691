"""Runs a script of a test on eight devices, in a process of its own: JAX fixes their number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def on_eight_devices(*arguments: str) -> subprocess.CompletedProcess:
    """`python *arguments`, which has to succeed.

    Programs are compiled anew: the compiler warns only then, and devices of XLA:CPU (jax 0.10.2)
    that run a train step from the cache may start its collectives in different orders and wait for
    each other for ever.
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_ENABLE_COMPILATION_CACHE": "false",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # compiling is most of the work
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done
