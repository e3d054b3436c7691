"""How the programs of tests are compiled: quickly, as most run once or twice."""

from __future__ import annotations

import threading
from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".jax_cache"

# With XLA's older emitters of loops, and without cutting programs into parts for several threads, a
# train step of `tests.tiny` takes 1.7 s to compile instead of 6.2 s. JAX ends on a flag that its
# XLA does not know, so they are set for the version that they were tried with.
TRIED = version("jaxlib").startswith("0.10.")
QUICK_FLAGS = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1" if TRIED else ""
)
PROGRAMS = 256  # that share an MLIR context; what is in it goes with the last of them


def xla_flags(devices: int | None = None) -> str:
    """XLA_FLAGS of a test process, with that many CPU devices."""
    count = f"--xla_force_host_platform_device_count={devices}" if devices else ""
    return f"{QUICK_FLAGS} {count}".strip()


def share_contexts() -> None:
    """Lets the programs of a thread share MLIR contexts.

    JAX makes one for each program and keeps it with the program in its caches. That is 4 of the
    17 ms that the program of a single operation takes, of which tests have thousands, and 2 MB.
    Threads have their own, as loading a dialect into a context is not safe between them.
    """
    if not TRIED:  # JAX offers no setting for it
        return
    from jax._src.interpreters import mlir

    make, own = mlir.make_ir_context, threading.local()

    def shared():
        if getattr(own, "left", 0) == 0:
            own.context, own.left = make(), PROGRAMS
        own.left -= 1
        return own.context

    mlir.make_ir_context = shared
