"""Flags of XLA by accelerator: found without JAX, never over the user's own, known to the pins."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unicom_jax.parallel.accelerators import ACCELERATORS
from unicom_jax.parallel.xla_flags import add_flags, describe_flags, present, set_flags
from unicom_jax.runs import compiler

ROOT = Path(__file__).resolve().parents[2]
BY_NAME = {entry.name: entry for entry in ACCELERATORS}
NOWHERE = Path("no such folder")


def pci(folder: Path, vendor: str, device: str, slot: str = "0000:00:04.0") -> Path:
    slot = folder / slot
    slot.mkdir()
    (slot / "vendor").write_text(vendor + "\n")
    (slot / "device").write_text(device + "\n")
    return folder


@pytest.mark.parametrize(
    ("vendor", "device", "name"),
    [("0x1ae0", "0x0062", "v5p"), ("0x1ae0", "0x006f", "v6e"), ("0x8086", "0x0062", None)],
)
def test_a_tpu_is_known_by_its_pci_numbers(tmp_path, vendor, device, name):
    assert present(pci(tmp_path, vendor, device), NOWHERE) is BY_NAME.get(name)


def test_a_network_card_of_googles_hides_no_tpu_behind_it(tmp_path):
    pci(tmp_path, "0x1ae0", "0x0042", "0000:00:03.0")
    assert present(tmp_path, NOWHERE) is None
    assert present(pci(tmp_path, "0x1ae0", "0x0063"), NOWHERE) is BY_NAME["v5e"]


def test_a_gpu_is_known_by_its_drivers_name_for_it(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "information").write_text("Model: \t\t NVIDIA H100 80GB HBM3\nIRQ: 1\n")
    assert present(NOWHERE, tmp_path).name == "h100"
    assert present(NOWHERE, NOWHERE) is None


def test_flags_that_are_set_already_stay_as_they_are():
    entry = BY_NAME["h100"]
    mine = "--xla_gpu_enable_triton_gemm=true --xla_dump_to=here"
    environ = {"XLA_FLAGS": mine, "CUDA_DEVICE_MAX_CONNECTIONS": "8"}
    add_flags(entry, environ)
    flags = environ["XLA_FLAGS"].split()
    assert environ["XLA_FLAGS"].startswith(mine)
    assert [flag for flag in flags if "triton_gemm" in flag] == [
        "--xla_gpu_enable_triton_gemm=true"
    ]
    assert len(flags) == len(entry.flags) + 1
    assert environ["CUDA_DEVICE_MAX_CONNECTIONS"] == "8"
    before = dict(environ)
    add_flags(entry, environ)
    assert environ == before


def test_flags_go_where_the_compiler_of_the_accelerator_reads_them(monkeypatch):
    for name, variable in (("v5p", "LIBTPU_INIT_ARGS"), ("h200", "XLA_FLAGS")):
        monkeypatch.setattr(
            "unicom_jax.parallel.xla_flags.present", lambda name=name: BY_NAME[name]
        )
        environ: dict[str, str] = {}
        assert set_flags("auto", environ) is BY_NAME[name]
        assert environ[variable].split() == list(BY_NAME[name].flags)
        assert set_flags("off", environ := {}) is None and not environ


def test_a_line_says_which_flags_and_how_to_turn_them_off():
    line = describe_flags(BY_NAME["v6e"], "auto")
    assert line.startswith('LIBTPU_INIT_ARGS="--xla') and "--config.xla_flags=off" in line
    assert describe_flags(BY_NAME["v6e"], "off") == "no XLA flags of v6e: xla_flags=off"
    assert describe_flags(BY_NAME["a100"], "auto") == describe_flags(None, "auto") == ""


@pytest.mark.parametrize("name", ["v4", "v5e", "v5p", "v6e"])
def test_no_preset_makes_large_products_slow_to_compile(name):
    """A higher limit of VMEM does: docs/plan.md has the times."""
    assert not [flag for flag in BY_NAME[name].flags if "scoped_vmem_limit" in flag]


# ---- flags that a run sets ----------------------------------------------------------------------


@pytest.fixture
def settings(monkeypatch):
    """What `prepare_compiler` changes of JAX's configuration."""
    changed: dict[str, object] = {}
    monkeypatch.setattr(compiler.jax.config, "update", changed.__setitem__)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XLA_FLAGS", "--one")
    return changed


@pytest.mark.parametrize(
    ("given", "on_cpu", "changes"),
    [
        (None, False, {"jax_compilation_cache_dir": "/run/compiled"}),
        (None, True, {}),
        ("/there", True, {"jax_compilation_cache_dir": "/there"}),
        ("off", False, {"jax_enable_compilation_cache": False}),
    ],
)
def test_compiled_programs_are_kept_in_the_workdir_or_where_the_user_says(
    settings, monkeypatch, given, on_cpu, changes
):
    monkeypatch.setattr(compiler, "computes_on_cpu", lambda: on_cpu)
    compiler.prepare_compiler("off", Path("/run"), given)
    assert settings == changes


def test_jaxs_own_variable_for_compiled_programs_is_honoured(settings, monkeypatch):
    monkeypatch.setattr(compiler, "computes_on_cpu", lambda: False)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/mine")
    compiler.prepare_compiler("off", Path("/run"))
    assert settings == {}


def test_a_dump_is_asked_for_beside_the_users_own_flags(settings):
    compiler.prepare_compiler("off", Path("/run"), dump="/text")
    assert os.environ["XLA_FLAGS"] == "--one --xla_dump_to=/text --xla_dump_hlo_as_text"


# ---- against the pinned compilers ---------------------------------------------------------------

# The smallest step with exchanges of weights and of gradients.
STEP = """
import sys
from unicom_jax.parallel.accelerators import ACCELERATORS
from unicom_jax.parallel.xla_flags import add_flags
name, topology = sys.argv[1:]
add_flags(next(entry for entry in ACCELERATORS if entry.name == name))
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.plan.topology import open_devices, parse_topology
mesh = make_mesh("data=2,fsdp=-1", open_devices(parse_topology(topology)))
place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
shape = lambda sizes, where: jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=where)
weights = shape((4, 512, 512), place(None, "fsdp"))
def loss(weights, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0].sum()
step = jax.jit(jax.grad(loss), out_shardings=place(None, "fsdp"))
text = step.lower(weights, shape((64, 512), place(("data", "fsdp")))).compile().as_text()
assert "all-gather" in text or "all-reduce" in text
"""


def compiles(name: str, topology: str) -> None:
    kept = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    command = [sys.executable, "-c", STEP, name, topology]
    done = subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.returncode}: {done.stderr[-2000:]}"


@pytest.mark.parametrize("name", [e.name for e in ACCELERATORS if e.flags and not e.torus])
def test_the_pinned_jaxlib_knows_the_flags_for_gpus(name):
    """JAX's own library reads XLA_FLAGS whatever it compiles for, and ends on an unknown one."""
    compiles(name, "cpu:4")


@pytest.mark.tpu_aot
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize("name", [entry.name for entry in ACCELERATORS if entry.torus])
def test_the_pinned_libtpu_compiles_with_the_flags(name):
    sizes = {"v4": "2x2x2", "v5e": "2x4", "v5p": "2x2x2", "v6e": "2x4", "tpu7x": "2x2x1"}
    compiles(name, f"{name}:{sizes[name]}")
