"""Devices that are not present: turns a line like `v5p:8x8x4` into a target for XLA.

    v5p:8x8x4   TPU chips by the shape of their torus; `slices` of them, joined by a network
    h100:128    GPUs, eight per node
    cpu:8       devices of this machine's CPU, to look at a program without any plugin

TPU needs libtpu, GPUs need JAX's CUDA plugin. Neither needs the hardware.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

from unicom_jax.parallel.accelerators import ACCELERATORS, Accelerator, find_accelerator
from unicom_jax.parallel.plan.gpu_target import target_config

MEGACORE = ("v4", "v5p")  # a chip's two cores form one device
NAMES = tuple(entry.name for entry in ACCELERATORS)
# What libtpu would otherwise read from a TPU machine.
ALONE = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """What a program is planned for.

    Attributes:
      name: the text as given, without the slices.
      accelerator: None for a CPU, which has no known peaks.
      shape: chips along each axis of a slice's torus; for GPUs (nodes, GPUs per node).
      slices: number of slices, which only a network joins.
    """

    name: str
    accelerator: Accelerator | None
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def devices(self) -> int:
        cores = 2 if self.kind == "tpu7x" else 1
        return math.prod(self.shape) * self.slices * cores

    @property
    def kind(self) -> str:
        return self.accelerator.name if self.accelerator else "cpu"

    @property
    def is_tpu(self) -> bool:
        return self.accelerator is not None and self.accelerator.torus > 0

    @property
    def device_kind(self) -> str:
        return self.accelerator.kinds[0] if self.accelerator else "cpu"

    @property
    def capacity(self) -> float | None:
        """Bytes of a device's memory; None for a CPU."""
        return self.accelerator.memory_gib * 2**30 if self.accelerator else None

    def holds(self, peak: float | None) -> bool:
        """Whether `peak` bytes fit on a device. `peak` is None if the compiler gave up."""
        return peak is not None and (self.capacity is None or peak <= self.capacity)

    def __str__(self) -> str:
        return f"{self.slices} x {self.name}" if self.slices > 1 else self.name


def parse_topology(text: str, slices: int = 1) -> Topology:
    """Reads `KIND:SIZE`.

    Raises:
      ValueError: an unknown kind, or a size that this kind does not have.
    """
    kind, _, size = text.partition(":")
    known = ", ".join((*NAMES, "cpu"))
    entry = next((entry for entry in ACCELERATORS if entry.name == kind), None)
    if entry is None and kind != "cpu":
        raise ValueError(f"--topology={text}: {kind!r} is not one of {known}")
    parts = size.split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        example = "h100:128" if entry and not entry.torus else "v5p:8x8x4"
        raise ValueError(f"--topology={text}: write its size after the kind, for example {example}")
    shape = tuple(map(int, parts))
    if entry is None or not entry.torus:
        return _flat_topology(text, entry, shape, slices)
    if len(shape) != entry.torus:
        axes = "x".join("NMK"[: entry.torus])
        raise ValueError(
            f"--topology={text}: a slice of {kind} is a torus of {entry.torus} axes; write "
            f"{kind}:{axes} in chips"
        )
    if slices < 1:
        raise ValueError(f"--slices={slices}: give a positive number")
    return Topology(text, entry, shape, slices)


def _flat_topology(
    text: str, entry: Accelerator | None, shape: tuple[int, ...], slices: int
) -> Topology:
    if len(shape) != 1:
        raise ValueError(f"--topology={text}: only TPUs have a shape; write a number of devices")
    if slices != 1:
        raise ValueError(f"--slices={slices} is for TPUs; nodes of GPUs follow from their number")
    if entry is None:
        return Topology(text, None, shape)
    devices, node = shape[0], min(shape[0], entry.node)
    if devices % node:
        raise ValueError(
            f"--topology={text}: {devices} GPUs do not fill whole nodes of {node}; give a "
            f"multiple of {node}"
        )
    return Topology(text, entry, (devices // node, node))


def name_devices(devices: Sequence[Any]) -> tuple[str, int] | None:
    """`KIND:SIZE` and the slices of devices that are present; None if their peaks are unknown."""
    entry = find_accelerator(devices[0].device_kind)
    if entry is None:
        return None
    if not entry.torus:
        return f"{entry.name}:{len(devices)}", 1
    places = np.array([device.coords[: entry.torus] for device in devices])
    shape = "x".join(map(str, np.ptp(places, axis=0) + 1))
    slices = {getattr(device, "slice_index", None) or 0 for device in devices}
    return f"{entry.name}:{shape}", len(slices)


def missing_compiler(topology: Topology) -> str:
    """What has to be installed to compile for the topology; "" if everything is."""
    if topology.is_tpu:
        return "" if _is_installed("libtpu") else "libtpu: pip install 'jax[tpu]'"
    if topology.accelerator is None or _is_installed("jax_cuda12_plugin"):
        return ""
    return (
        f"JAX's CUDA compiler: pip install --no-deps jax-cuda12-pjrt=={jax.__version__} "
        f"jax-cuda12-plugin=={jax.__version__} nvidia-cuda-nvcc-cu12"
    )


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def open_devices(topology: Topology) -> Sequence[Any]:
    """The topology's devices, which can be compiled for but hold no arrays.

    Raises:
      ValueError: the compiler refuses this shape, or there are too few CPU devices.
    """
    if topology.accelerator is None:
        return _cpu_devices(topology.devices)
    try:
        return _tpu_devices(topology) if topology.is_tpu else _gpu_devices(topology)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0][:200]
        raise ValueError(f"--topology={topology.name} cannot be: {reason}") from None


def _cpu_devices(count: int) -> Sequence[Any]:
    """Requests `count` devices from JAX if it has not started yet."""
    with contextlib.suppress(RuntimeError):  # JAX has started: use the devices that exist
        jax.config.update("jax_num_cpu_devices", count)
    devices = jax.devices("cpu")
    if len(devices) < count:
        raise ValueError(
            f"--topology=cpu:{count} needs that many CPU devices, but there are {len(devices)}; "
            f"set XLA_FLAGS=--xla_force_host_platform_device_count={count}"
        )
    return devices[:count]


def _tpu_devices(topology: Topology) -> Sequence[Any]:
    for name, value in ALONE.items():
        os.environ.setdefault(name, value)
    host = (2, 2, 1) if min(topology.shape[:2]) > 1 else (1, 1, 1)
    options: dict[str, Any] = {"num_slices": topology.slices, "chips_per_host_bounds": host}
    if topology.kind != "tpu7x":
        options["chip_config_name"] = "megacore" if topology.kind in MEGACORE else "default"
    return topologies.get_topology_desc(
        platform="tpu", topology_name=topology.name, **options
    ).devices


def _gpu_devices(topology: Topology) -> Sequence[Any]:
    # There is no GPU to time candidate kernels, so products go to cuBLAS, which needs no timing.
    flags = os.environ.get("XLA_FLAGS", "")
    if "autotune_level" not in flags:
        own = f"--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false {_cuda_folder()}"
        os.environ["XLA_FLAGS"] = f"{flags} {own}".strip()
    nodes, node = topology.shape
    return topologies.get_topology_desc(
        platform="cuda",
        topology=f"1x{nodes}x{node}",
        target_config=target_config(topology.accelerator),
    ).devices


def _cuda_folder() -> str:
    """The flag with the folder into which pip installed NVIDIA's compiler."""
    found = importlib.util.find_spec("nvidia")
    folders = found.submodule_search_locations if found else []
    for folder in folders:
        if os.path.isdir(os.path.join(folder, "cuda_nvcc")):
            return f"--xla_gpu_cuda_data_dir={os.path.join(folder, 'cuda_nvcc')}"
    return ""


def coordinates(topology: Topology, devices: Sequence[Any]) -> np.ndarray:
    """(devices, 1 + axes): slice (for GPUs: node) and place in it, in the order of `devices`."""
    if topology.is_tpu:
        rows = [((getattr(d, "slice_index", 0) or 0), *d.coords) for d in devices]
    elif topology.accelerator:
        rows = [divmod(number, topology.shape[1]) for number in map(int, _numbers(devices))]
    else:
        rows = [(0, number) for number in range(len(devices))]
    return np.array(rows, int)


def _numbers(devices: Sequence[Any]) -> np.ndarray:
    """Numbers of GPUs, counted node by node."""
    ids = np.array([device.id for device in devices])
    return np.argsort(np.argsort(ids))
