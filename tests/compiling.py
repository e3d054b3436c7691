"""How the programs of tests are compiled: quickly, as most run once or twice."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".jax_cache"

# With XLA's older emitters of loops, and without cutting programs into parts for several threads, a
# train step of `tests.tiny` takes 1.7 s to compile instead of 6.2 s. JAX ends on a flag that its
# XLA does not know, so they are set for the version that they were tried with.
QUICK_FLAGS = (
    "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    if version("jaxlib").startswith("0.10.")
    else ""
)


def xla_flags(devices: int | None = None) -> str:
    """XLA_FLAGS of a test process, with that many CPU devices."""
    count = f"--xla_force_host_platform_device_count={devices}" if devices else ""
    return f"{QUICK_FLAGS} {count}".strip()
