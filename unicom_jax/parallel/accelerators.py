"""What is known of accelerators before a run: one table for meshes, utilisation and plans."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One JAX device of a type. A tpu7x chip is two of them; of all others here a chip is one.

    Attributes:
      name: as topologies are named, e.g. "v5p" in "v5p:8x8x8".
      kinds: beginnings of `jax.Device.device_kind`.
      flops: dense bf16 peak in FLOP/s.
      memory_gib: high-bandwidth memory in GiB.
      node: devices of one host as pods and clusters have them.
      mesh: the preset, a line of `parallel.mesh`. `{slices}` and `{node}` are filled in.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory_gib: int
    node: int
    mesh: str


# A TPU slice is one torus of fast links, so weights are sharded over all of it and only gradients
# cross between slices. GPUs have fast links (NVLink) within a node: sharded there, copied across.
TORUS, NODES = "slice={slices},fsdp=-1", "data=-1,fsdp={node}"

# Peaks and memory from the vendors' data sheets, of a tpu7x half a chip's.
ACCELERATORS = (
    Accelerator("v4", ("TPU v4",), 275e12, 32, 4, TORUS),
    Accelerator("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16, 4, TORUS),
    Accelerator("v5p", ("TPU v5p", "TPU v5"), 459e12, 95, 4, TORUS),
    Accelerator("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32, 4, TORUS),
    Accelerator("tpu7x", ("TPU7x",), 1153.5e12, 96, 8, TORUS),
    Accelerator("a100", ("NVIDIA A100",), 312e12, 40, 8, NODES),
    Accelerator("a100-80", ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB"), 312e12, 80, 8, NODES),
    Accelerator("h100", ("NVIDIA H100",), 989e12, 79, 8, NODES),
    Accelerator("h200", ("NVIDIA H200",), 989e12, 140, 8, NODES),
)


def find_accelerator(device_kind: str) -> Accelerator | None:
    """The entry whose kind is the longest beginning of `device_kind`; None for a CPU or a newcomer.

    A GPU on a PCIe card has less than the peak given here, so its utilisation is underestimated.
    """
    kinds = {kind: entry for entry in ACCELERATORS for kind in entry.kinds}
    matches = [kind for kind in kinds if device_kind.startswith(kind)]
    return kinds[max(matches, key=len)] if matches else None


def preset_mesh(device_kind: str, devices: int, slices: int = 1) -> str:
    """The mesh that suits `devices` of a kind in `slices` slices, as a line of `parallel.mesh`.

    Unknown kinds, CPUs among them, get the torus's.
    """
    entry = find_accelerator(device_kind)
    line, node = (entry.mesh, entry.node) if entry else (TORUS, devices)
    return line.format(slices=slices, node=min(node, devices))
