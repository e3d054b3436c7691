"""What XLA's GPU compiler needs to know about a device that is not present."""

from __future__ import annotations

from unicom_jax.parallel.accelerators import Accelerator

# XLA's GpuTargetConfigProto; sizes from NVIDIA's tuning guides for Ampere and Hopper.
TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: {core_memory}
  shared_memory_per_block_optin: {block_memory}
  threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {cache} clock_rate_ghz: {clock}
  device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: 0 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 7 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{name}"
"""
_AMPERE = {
    "core_memory": 167_936, "block_memory": 166_912, "cores": 108, "fpus": 64,
    "cache": 41_943_040, "clock": 1.41, "major": 8,
}  # fmt: skip
_HOPPER = {
    "core_memory": 233_472, "block_memory": 232_448, "cores": 132, "fpus": 128,
    "cache": 52_428_800, "clock": 1.98, "major": 9,
}  # fmt: skip
GPUS = {
    "a100": {**_AMPERE, "name": "NVIDIA A100-SXM4-40GB"},
    "a100-80": {**_AMPERE, "name": "NVIDIA A100-SXM4-80GB"},
    "h100": {**_HOPPER, "name": "NVIDIA H100 80GB HBM3"},
    "h200": {**_HOPPER, "name": "NVIDIA H200"},
}


def target_config(accelerator: Accelerator) -> str:
    """The text of an `xla.stream_executor.GpuTargetConfigProto`."""
    memory, bandwidth = accelerator.memory_gib * 2**30, int(accelerator.hbm)
    return TARGET.format(memory=memory, bandwidth=bandwidth, **GPUS[accelerator.name])
