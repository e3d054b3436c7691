"""Keeps freed memory in the process: on CPU, XLA allocates its buffers again at every step."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys

# <malloc.h> of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def computes_on_cpu() -> bool:
    """Whether JAX will, by what is installed and by JAX_PLATFORMS; asks without starting JAX."""
    chosen = os.environ.get("JAX_PLATFORMS", "")
    if chosen:
        return chosen == "cpu"
    return not any(importlib.util.find_spec(plugin) for plugin in ("jax_plugins", "libtpu"))


def keep_freed_memory() -> bool:
    """Where JAX computes on CPU: glibc gives no freed memory back, for the rest of the process.

    By default each large buffer is a mapping of its own, so every training step faults in all of
    its pages again: a quarter of the CPU time of the step that `make bench` takes. Kept memory
    stays at its highest mark, which a step reaches anyway. Call it before JAX starts its threads,
    which would otherwise get arenas that cannot hold large buffers.

    Returns:
      Whether it took effect; False with an accelerator or a C library other than glibc.
    """
    if not computes_on_cpu() or not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    options = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_ARENA_MAX: 1}
    return all(libc.mallopt(option, value) for option, value in options.items())
