"""XLA's flags for an accelerator, from the table in `accelerators.py`, set before JAX starts.

A flag that a compiler does not know ends the process, so the tests compile with every preset
against the pinned libtpu and jaxlib. None of the presets was timed on the hardware.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path

from unicom_jax.parallel.accelerators import ACCELERATORS, Accelerator, find_accelerator
from unicom_jax.parallel.platform import PCI, google_devices

OFF = "off"
# PCI device ids of Google's chips.
TPUS = {"0x005e": "v4", "0x0062": "v5p", "0x0063": "v5e", "0x006f": "v6e", "0x0076": "tpu7x"}


def set_flags(choice: str, environ: MutableMapping[str, str] = os.environ) -> Accelerator | None:
    """Sets this machine's accelerator's flags unless `choice` is "off"; call before JAX starts.

    Returns:
      The accelerator whose flags are set; None if there is none.
    """
    entry = None if choice == OFF else present()
    if entry is None or not entry.flags:
        return None
    add_flags(entry, environ)
    return entry


def add_flags(entry: Accelerator, environ: MutableMapping[str, str] = os.environ) -> None:
    """Adds the entry's flags to those in the environment. Flags already set there are kept."""
    given = environ.get(entry.flags_variable, "")
    names = {flag.partition("=")[0] for flag in given.split()}
    new = [flag for flag in entry.flags if flag.partition("=")[0] not in names]
    if new:
        environ[entry.flags_variable] = " ".join([given, *new]).strip()
    for name, value in entry.environment:
        environ.setdefault(name, value)


def describe_flags(entry: Accelerator | None, choice: str) -> str:
    """A line about the flags that a run on this accelerator gets; "" if none are known."""
    if entry is None or not entry.flags:
        return ""
    if choice == OFF:
        return f"no XLA flags of {entry.name}: xla_flags=off"
    variables = "".join(f" {name}={value}" for name, value in entry.environment)
    flags = " ".join(entry.flags)
    return f'{entry.flags_variable}="{flags}"{variables} (off: --config.xla_flags=off)'


def present(pci: Path = PCI, gpus: Path = Path("/proc/driver/nvidia/gpus")) -> Accelerator | None:
    """The accelerator of this machine, without asking JAX; None for a CPU or an unknown one."""
    tpus = {TPUS[device] for device in google_devices(pci) if device in TPUS}
    for entry in ACCELERATORS:
        if entry.name in tpus:
            return entry
    for card in sorted(gpus.glob("*/information")):
        for line in card.read_text(encoding="utf-8").splitlines():
            if line.startswith("Model:"):
                return find_accelerator(line.partition(":")[2].strip())
    return None
