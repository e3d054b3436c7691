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
      hbm: bytes/s of the high-bandwidth memory.
      link: bytes/s one way, of one of a torus's links or of a GPU's whole NVLink.
      network: bytes/s one way of the network between slices or nodes, a device's share.
      torus: axes of the torus of links; 0: a switch joins the devices of a node.
      wrap: an axis of at least so many chips is closed to a ring.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    memory_gib: int
    node: int
    mesh: str
    hbm: float
    link: float
    network: float
    torus: int = 0
    wrap: int = 0


# A TPU slice is one torus of fast links, so weights are sharded over all of it and only gradients
# cross between slices. GPUs have fast links (NVLink) within a node: sharded there, copied across.
TORUS, NODES = "slice={slices},fsdp=-1", "data=-1,fsdp={node}"

# Peaks from the vendors' data sheets, of a tpu7x half a chip's. TPUs: a page for each under
# docs.cloud.google.com/tpu/docs; a link's rate is the chip's, one way, over its 6 or 4 ports, and
# the network's a host's cards over its chips (v4, v5p: jax-ml.github.io/scaling-book).
# GPUs: nvidia.com, SXM boards, and a network card of 200 (A100) or 400 Gb/s for each.
ACCELERATORS = (
    Accelerator("v4", ("TPU v4",), 275e12, 32, 4, TORUS, 1.228e12, 50e9, 6.25e9, 3, 4),
    Accelerator(
        "v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16, 4, TORUS, 819e9, 50e9, 3.125e9, 2, 16
    ),
    Accelerator("v5p", ("TPU v5p", "TPU v5"), 459e12, 95, 4, TORUS, 2.765e12, 100e9, 6.25e9, 3, 4),
    Accelerator(
        "v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32, 4, TORUS, 1.638e12, 100e9, 12.5e9, 2, 16
    ),
    Accelerator("tpu7x", ("TPU7x",), 1153.5e12, 96, 8, TORUS, 3.69e12, 50e9, 6.25e9, 3, 4),
    Accelerator("a100", ("NVIDIA A100",), 312e12, 40, 8, NODES, 1.555e12, 300e9, 25e9),
    Accelerator(
        "a100-80", ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB"), 312e12, 80, 8, NODES,
        2.039e12, 300e9, 25e9,
    ),
    Accelerator("h100", ("NVIDIA H100",), 989e12, 79, 8, NODES, 3.35e12, 450e9, 50e9),
    Accelerator("h200", ("NVIDIA H200",), 989e12, 140, 8, NODES, 4.8e12, 450e9, 50e9),
)  # fmt: skip


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
