"""Which platform JAX starts on when the installed plugins do not match the hardware."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

GOOGLE = "0x1ae0"  # PCI vendor
NO_TPUS = {"0x0042", "0x001f"}  # Google's network card and disk, present in all its cloud machines
PCI = Path("/sys/bus/pci/devices")


def skip_absent_tpus() -> None:
    """If libtpu is installed (`jax[tpu]`, needed by `unicom plan`) but no TPU is present, makes JAX
    start without it, since libtpu would write a page of warnings. Call this before JAX starts.

    Does nothing if JAX_PLATFORMS or JAX_FORCE_TPU_INIT is set, or another plugin may be in use.
    """
    said = os.environ.get("JAX_PLATFORMS") or "JAX_FORCE_TPU_INIT" in os.environ
    if said or importlib.util.find_spec("libtpu") is None or _tpus() or _plugins():
        return
    os.environ["JAX_PLATFORMS"] = "cpu"


def google_devices(pci: Path) -> set[str]:
    """PCI device ids of the devices of this machine that Google made."""
    return {
        vendor.with_name("device").read_text(encoding="ascii").strip()
        for vendor in pci.glob("*/vendor")
        if vendor.read_text(encoding="ascii").strip() == GOOGLE
    }


def _tpus() -> bool:
    return bool(google_devices(PCI) - NO_TPUS)


def _plugins() -> bool:
    return importlib.util.find_spec("jax_plugins") is not None
