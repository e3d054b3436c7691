"""The fused attention's kernels compiled for devices that are not there, at unicom_7b's sizes.

`make test-tpu` runs it; for GPUs only where JAX's CUDA compiler is installed (docs/plan.md).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from unicom_jax.core.activations import ROWS, SLOTS, on_mesh
from unicom_jax.core.attention import attention
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.plan.costs import count_costs
from unicom_jax.parallel.plan.hlo import parse_program
from unicom_jax.parallel.plan.topology import missing_compiler, open_devices, parse_topology

pytestmark = pytest.mark.tpu_aot

SLOTS_OF_A_ROW, HEADS, KV_HEADS, DIM = 4608, 28, 4, 128
FORWARD, BACKWARD = 2, 3 + 4  # products a pair of slots


@pytest.mark.parametrize(
    ("name", "mesh_text"),
    [("v5p:2x2x1", "fsdp=4"), ("v5e:2x2", "fsdp=2,context=2"), ("h100:8", "fsdp=8")],
)
def test_forward_and_backward_fit_and_are_counted_from_the_programs_text(name, mesh_text):
    topology = parse_topology(name)
    if missing := missing_compiler(topology):
        pytest.skip(f"needs {missing}")
    devices = open_devices(topology)
    mesh = make_mesh(mesh_text, devices)

    def loss(q, k, v, mask):
        with on_mesh(mesh):
            out = attention(q, k, v, mask, backend="fused", rows=ROWS, slots=SLOTS)
        return jnp.sum(out.astype(jnp.float32) ** 2)

    def array(*shape, dtype=jnp.bfloat16):
        place = NamedSharding(mesh, PartitionSpec(ROWS, SLOTS))
        return jax.ShapeDtypeStruct((rows, SLOTS_OF_A_ROW, *shape), dtype, sharding=place)

    rows = mesh.shape["fsdp"]
    mask = MaskIntervals(*[array(dtype=jnp.int32)] * 4)
    keys = array(KV_HEADS, DIM)
    step = jax.jit(jax.grad(loss, (0, 1, 2))).lower(array(HEADS, DIM), keys, keys, mask)
    costs = count_costs(parse_program(step.compile().as_text()))
    pairs = rows * HEADS * SLOTS_OF_A_ROW**2 // len(devices)
    assert costs.flops == 2 * DIM * pairs * (FORWARD + BACKWARD)
    assert costs.nbytes < 4 * pairs  # what it takes to write all scores once, in fp32
