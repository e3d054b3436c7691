"""libtpu is left alone where no TPU is."""

from __future__ import annotations

import pytest

from unicom_jax.parallel import platform


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with these packages and these PCI vendors."""
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.delenv("JAX_FORCE_TPU_INIT", raising=False)

    def make(packages=(), vendors=()):
        monkeypatch.setattr(
            platform.importlib.util, "find_spec", lambda name: name if name in packages else None
        )
        for number, vendor in enumerate(vendors):
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / "vendor").write_text(f"{vendor}\n", encoding="ascii")
        monkeypatch.setattr(platform, "PCI", tmp_path)
        platform.skip_absent_tpus()
        return platform.os.environ.get("JAX_PLATFORMS")

    yield make
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)


def test_without_a_tpu_jax_starts_on_the_cpu(machine):
    assert machine(["libtpu"], ["0x8086"]) == "cpu"


@pytest.mark.parametrize(
    ("packages", "vendors"),
    [
        ([], []),
        (["libtpu"], ["0x8086", "0x1ae0"]),
        (["libtpu", "jax_plugins"], ["0x10de"]),
    ],
    ids=["no libtpu", "a TPU", "a plugin for GPUs"],
)
def test_otherwise_jax_chooses(machine, packages, vendors):
    assert machine(packages, vendors) is None


def test_what_the_user_chose_stays(machine, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    assert machine(["libtpu"]) == "tpu"
