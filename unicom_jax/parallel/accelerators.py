"""What is known about accelerators before a run: one table for meshes, utilisation and plans."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """One JAX device of a type. A tpu7x chip is two devices; all other chips here are one.

    Attributes:
      name: name in topologies, e.g. "v5p" in "v5p:8x8x8".
      kinds: prefixes of `jax.Device.device_kind`.
      flops: dense bf16 peak in FLOP/s.
      memory_gib: high-bandwidth memory in GiB.
      node: devices per host in usual pods and clusters.
      mesh: the preset, a line of `parallel.mesh`. `{slices}` and `{node}` are filled in.
      hbm: bytes/s of the high-bandwidth memory.
      link: bytes/s in one direction, of one torus link or of a GPU's whole NVLink.
      network: bytes/s in one direction, a device's share of the network between slices or nodes.
      torus: axes of the torus of links; 0: a switch joins the devices of a node.
      wrap: an axis of at least this many chips is closed to a ring.
      flags: XLA flags with which others train on it (`parallel/xla_flags.py`); (): none known.
      environment: further variables for the same purpose, (name, value).
      tf32, fp32: peaks in FLOP/s of products of fp32 numbers, with and without rounding to TF32; 0
        for a TPU, which builds them from bf16 products (`parallel/plan/arithmetic.py`).
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
    flags: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    tf32: float = 0.0
    fp32: float = 0.0

    @property
    def flags_variable(self) -> str:
        """The environment variable from which the compiler reads its flags."""
        return "LIBTPU_INIT_ARGS" if self.torus else "XLA_FLAGS"


# A TPU slice is one torus of fast links, so weights are sharded over all of it and only gradients
# cross between slices. GPUs have fast links (NVLink) only within a node, so weights are sharded
# within nodes and copied across them.
TORUS, NODES = "slice={slices},fsdp=-1", "data=-1,fsdp={node}"

# Exchanges that overlap with products, and on-chip memory for the compiler, as in published launch
# scripts: MaxText's configs/tpu for v5e, v5p and v6e, tpu-recipes' training/ironwood for tpu7x,
# gpu-recipes' training/a3ultra and JAX-Toolbox's test-maxtext.sh for Hopper.
# The scripts' --xla_tpu_scoped_vmem_limit_kib=98304 for v5p and v6e is left out: with it XLA tries
# so many more tilings of large products that unicom_7b's pretrain does not compile in useful time.
# Compiling one product of 9216 x 18944 by 18944 x 3584 takes 19 s of one core instead of 1.3 for
# v5p, and 32 s instead of 2.4 for v6e (docs/plan.md).
_FUSED_EXCHANGES = (
    "--xla_tpu_enable_async_collective_fusion_fuse_all_gather=true",
    "--xla_tpu_enable_async_collective_fusion_multiple_steps=true",
    "--xla_tpu_overlap_compute_collective_tc=true",
    "--xla_enable_async_all_gather=true",
)
_DATA_PARALLEL = (
    "--xla_tpu_enable_data_parallel_all_reduce_opt=true",
    "--xla_tpu_data_parallel_opt_different_sized_ops=true",
)
V5E_FLAGS = (
    "--xla_tpu_enable_async_collective_fusion=true",
    *_FUSED_EXCHANGES,
    *_DATA_PARALLEL,
)
V5P_FLAGS = (
    *V5E_FLAGS,
    "--xla_enable_async_collective_permute=true",
    "--xla_tpu_enable_ag_backward_pipelining=true",
    "--xla_tpu_megacore_fusion_allow_ags=false",
)
V6E_FLAGS = (
    *_FUSED_EXCHANGES,
    "--xla_tpu_use_minor_sharding_for_major_trivial_input=true",
    "--xla_tpu_relayout_group_size_threshold_for_reduce_scatter=1",
    "--xla_tpu_assign_all_reduce_scatter_layout=true",
)
TPU7X_FLAGS = (
    "--xla_tpu_scoped_vmem_limit_kib=65536",
    "--xla_tpu_bf16_emission_mode=NATIVE_EMISSION",
    "--xla_tpu_enable_sparse_core_reduce_scatter_v2=true",
    *(
        f"--xla_tpu_enable_sparse_core_collective_offload_{kind}=true"
        for kind in (
            *("all_gather", "2d_all_gather", "3d_all_gather"),
            *("nd_reduce_scatter", "all_reduce", "reduce_scatter"),
        )
    ),
    "--xla_tpu_use_single_sparse_core_for_all_gather_offload=true",
    "--xla_tpu_use_tc_device_shape_on_sc=true",
    "--xla_sc_disable_megacore_partitioning=true",
    "--xla_enable_async_all_gather=true",
    "--xla_tpu_prefer_async_allgather_to_allreduce=true",
    "--xla_tpu_enable_latency_hiding_layer_scheduler=true",
    "--xla_tpu_enable_layer_scheduler_for_dependent_collectives=true",
    "--xla_tpu_scheduler_percent_shared_memory_limit=150",
    "--xla_tpu_enable_sparse_core_collective_aggregator=true",
    "--xla_tpu_enable_all_gather_offload_tracing=true",
)
# Those scripts' pipelined collectives and double-buffered loops are left out: with them XLA keeps
# two copies of what layers save for the backward pass, 108 GiB instead of 64 in unicom_7b's
# pretrain.
HOPPER_FLAGS = (
    "--xla_gpu_enable_latency_hiding_scheduler=true",
    "--xla_gpu_enable_triton_gemm=false",
    "--xla_gpu_enable_command_buffer=",
    "--xla_gpu_all_reduce_combine_threshold_bytes=1073741824",
    "--xla_gpu_all_gather_combine_threshold_bytes=134217728",
    "--xla_gpu_reduce_scatter_combine_threshold_bytes=134217728",
    "--xla_gpu_enable_all_gather_combine_by_dim=false",
    "--xla_gpu_enable_reduce_scatter_combine_by_dim=false",
)
AMPERE_FP32 = {"tf32": 156e12, "fp32": 19.5e12}
HOPPER_FP32 = {"tf32": 494.5e12, "fp32": 67e12}
HOPPER_ENVIRONMENT = (
    ("CUDA_DEVICE_MAX_CONNECTIONS", "1"),
    ("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.9"),
)

# Peaks are from the vendors' data sheets (for tpu7x, half a chip's). TPUs: one page for each under
# docs.cloud.google.com/tpu/docs; a link's rate is the chip's, in one direction, divided by its 6 or
# 4 ports, and the network's rate that of a host's cards divided by its chips (v4, v5p:
# jax-ml.github.io/scaling-book). GPUs: nvidia.com, SXM boards, with a network card of 200 (A100) or
# 400 Gb/s for each.
ACCELERATORS = (
    Accelerator("v4", ("TPU v4",), 275e12, 32, 4, TORUS, 1.228e12, 50e9, 6.25e9, 3, 4),
    Accelerator(
        "v5e", ("TPU v5 lite", "TPU v5e"), 197e12, 16, 4, TORUS, 819e9, 50e9, 3.125e9, 2, 16,
        V5E_FLAGS,
    ),
    Accelerator(
        "v5p", ("TPU v5p", "TPU v5"), 459e12, 95, 4, TORUS, 2.765e12, 100e9, 6.25e9, 3, 4,
        V5P_FLAGS,
    ),
    Accelerator(
        "v6e", ("TPU v6 lite", "TPU v6e"), 918e12, 32, 4, TORUS, 1.638e12, 100e9, 12.5e9, 2, 16,
        V6E_FLAGS,
    ),
    Accelerator(
        "tpu7x", ("TPU7x",), 1153.5e12, 96, 8, TORUS, 3.69e12, 50e9, 6.25e9, 3, 4, TPU7X_FLAGS
    ),
    Accelerator(
        "a100", ("NVIDIA A100",), 312e12, 40, 8, NODES, 1.555e12, 300e9, 25e9, **AMPERE_FP32
    ),
    Accelerator(
        "a100-80", ("NVIDIA A100-SXM4-80GB", "NVIDIA A100 80GB"), 312e12, 80, 8, NODES,
        2.039e12, 300e9, 25e9, **AMPERE_FP32,
    ),
    Accelerator(
        "h100", ("NVIDIA H100",), 989e12, 79, 8, NODES, 3.35e12, 450e9, 50e9,
        flags=HOPPER_FLAGS, environment=HOPPER_ENVIRONMENT, **HOPPER_FP32,
    ),
    Accelerator(
        "h200", ("NVIDIA H200",), 989e12, 140, 8, NODES, 4.8e12, 450e9, 50e9,
        flags=HOPPER_FLAGS, environment=HOPPER_ENVIRONMENT, **HOPPER_FP32,
    ),
)  # fmt: skip


def find_accelerator(device_kind: str) -> Accelerator | None:
    """The entry whose kind is the longest prefix of `device_kind`; None for CPUs and unknown kinds.

    A GPU on a PCIe card has a lower peak than given here, so its utilisation is underestimated.
    """
    kinds = {kind: entry for entry in ACCELERATORS for kind in entry.kinds}
    matches = [kind for kind in kinds if device_kind.startswith(kind)]
    return kinds[max(matches, key=len)] if matches else None


def preset_mesh(device_kind: str, devices: int, slices: int = 1) -> str:
    """The mesh that suits `devices` of a kind in `slices` slices, as a line of `parallel.mesh`.

    Unknown kinds, including CPUs, get the mesh of a torus.
    """
    entry = find_accelerator(device_kind)
    line, node = (entry.mesh, entry.node) if entry else (TORUS, devices)
    return line.format(slices=slices, node=min(node, devices))
