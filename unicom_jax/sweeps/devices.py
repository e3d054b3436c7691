"""The accelerators that jobs on this machine will have, seen by a process of its own: one that has
looked at them keeps their memory, which the jobs need."""

from __future__ import annotations

import functools
import subprocess
import sys

import jax

from unicom_jax.core.memory import computes_on_cpu
from unicom_jax.parallel.plan.topology import Topology, name_devices, parse_topology


@functools.cache
def seen_topology() -> Topology | None:
    """None where JAX computes on a CPU or sees no accelerator whose peaks are known."""
    if computes_on_cpu():
        return None
    command = [sys.executable, "-m", "unicom_jax.sweeps.devices"]
    done = subprocess.run(command, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1:]
    if done.returncode or not last or last == ["none"]:
        return None
    name, slices = last[0].split()
    return parse_topology(name, int(slices))


if __name__ == "__main__":
    found = name_devices(jax.devices())
    print(*(found or ["none"]))
