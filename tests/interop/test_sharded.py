"""Weights on four devices: the same as on one, and read no more than a device needs."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import pytest

from tests.compiling import xla_flags
from tests.families.documents import lively
from unicom_jax.core.module import iter_specs
from unicom_jax.interop.folders import write_model
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.models.transformer import Transformer

QWEN = Transformer(
    vocab_size=48, width=16, depth=3, heads=4, kv_heads=2, head_dim=8, mlp_dim=32, tied_head=False
)
# In a process of its own, as the number of devices is fixed when JAX starts.
SCRIPT = """
import pathlib, sys
import chex, jax
from tests.interop.test_sharded import QWEN
from unicom_jax.interop.folders import read_model, write_model
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.interop.tensors import TensorFolder
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.sharding import param_shardings

folder, layout = pathlib.Path(sys.argv[1]), LAYOUTS["qwen"]
one = read_model(folder, layout, QWEN)
sizes, read = [], TensorFolder.read
TensorFolder.read = lambda *args: sizes.append((r := read(*args)).nbytes) or r
mesh = make_mesh(sys.argv[2])
four = read_model(folder, layout, QWEN, shardings=param_shardings(QWEN.specs(), mesh))
chex.assert_trees_all_equal(one, four)
spread = [leaf for leaf in jax.tree.leaves(four) if not leaf.sharding.is_fully_replicated]
assert len(spread) > 5 and all(len(leaf.devices()) == 4 for leaf in jax.tree.leaves(four))
write_model(folder / "again", layout, QWEN, four)
assert (folder / "again/model.safetensors").read_bytes() == (
    folder / "model.safetensors").read_bytes()
print(sum(sizes))
"""


@pytest.mark.parametrize("mesh", ["fsdp=4", "fsdp=2,tensor=2", "data=2,fsdp=2"])
def test_four_devices_hold_what_one_holds_and_each_part_is_read_once(tmp_path, mesh):
    write_model(tmp_path, LAYOUTS["qwen"], QWEN, lively(QWEN))
    environment = {**os.environ, "XLA_FLAGS": xla_flags(devices=4)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), mesh],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) == 4 * sum(spec.size for _, spec in iter_specs(QWEN.specs()))


def test_one_device_takes_over_what_was_read_without_a_copy(monkeypatch):
    import numpy as np

    from unicom_jax.interop.transfer import aligned_empty, place_parts

    if jax.devices()[0].platform != "cpu":
        pytest.skip("only memory of the host can be taken over")
    made = []

    def part(index):
        made.append(aligned_empty([8, 3], np.dtype(np.float32)))
        made[0][...] = 1
        return made[0]

    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    array = place_parts((8, 3), place, part)
    assert array.unsafe_buffer_pointer() == made[0].ctypes.data
