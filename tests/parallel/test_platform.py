"""libtpu is left alone where no TPU is."""

from __future__ import annotations

import pytest

from unicom_jax.parallel import platform


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with these packages and these PCI devices, (vendor, device)."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("JAX_FORCE_TPU_INIT", raising=False)

    def make(packages=(), devices=()):
        monkeypatch.setattr(
            platform.importlib.util, "find_spec", lambda name: name if name in packages else None
        )
        for number, ids in enumerate(devices):
            (tmp_path / str(number)).mkdir()
            for name, value in zip(("vendor", "device"), ids, strict=True):
                (tmp_path / str(number) / name).write_text(f"{value}\n", encoding="ascii")
        monkeypatch.setattr(platform, "PCI", tmp_path)
        platform.skip_absent_tpus()
        return platform.os.environ.get("JAX_PLATFORMS")

    yield make
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)


@pytest.mark.parametrize("device", [("0x8086", "0x1237"), ("0x1ae0", "0x0042")])
def test_without_a_tpu_jax_starts_on_the_cpu_though_the_network_card_may_be_googles(
    machine, device
):
    assert machine(["libtpu"], [device]) == "cpu"


@pytest.mark.parametrize(
    ("packages", "devices"),
    [
        ([], []),
        (["libtpu"], [("0x8086", "0x1237"), ("0x1ae0", "0x0062")]),
        (["libtpu", "jax_plugins"], [("0x10de", "0x2330")]),
    ],
    ids=["no libtpu", "a TPU", "a plugin for GPUs"],
)
def test_otherwise_jax_chooses(machine, packages, devices):
    assert machine(packages, devices) is None


def test_what_the_user_chose_stays(machine, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert machine(["libtpu"]) == "tpu"
