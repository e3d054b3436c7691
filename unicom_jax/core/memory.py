"""Keeps freed memory in the process, since XLA on CPU allocates its buffers anew at every step."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys

# <malloc.h> of glibc
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8


def computes_on_cpu() -> bool:
    """Whether JAX will compute on CPU, by installed packages and JAX_PLATFORMS; starts no JAX."""
    chosen = os.environ.get("JAX_PLATFORMS", "")
    if chosen:
        return chosen == "cpu"
    return not any(importlib.util.find_spec(plugin) for plugin in ("jax_plugins", "libtpu"))


def keep_freed_memory() -> bool:
    """If JAX computes on CPU, makes glibc keep freed memory for the rest of the process.

    By default each large buffer is a mapping of its own, so every training step faults in all of
    its pages again: a quarter of the CPU time of a step in `make bench`. Memory use stays at its
    peak, which every step reaches anyway. Call this before JAX starts its threads, which would
    otherwise get arenas that cannot hold large buffers.

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
