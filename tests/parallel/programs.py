"""Runs a script of a test on eight devices, in a process of its own: JAX fixes their number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.compiling import CACHE, xla_flags

ROOT = Path(__file__).resolve().parents[2]


def on_eight_devices(*arguments: str, cached: bool = True) -> subprocess.CompletedProcess:
    """`python *arguments`, which has to succeed.

    Args:
      cached: take compiled programs from the tests' cache; the compiler warns only without.
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(CACHE)),
        "JAX_ENABLE_COMPILATION_CACHE": "true" if cached else "false",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",  # compiling is most of the work
        "XLA_FLAGS": xla_flags(devices=8),
        "NPROC": "16",  # threads, see parallel/cpu_threads
    }
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done
