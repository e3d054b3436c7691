"""CPU devices that are made on request get threads of their own."""

from __future__ import annotations

import os

import pytest

from unicom_jax.parallel.cpu_threads import enough_cpu_threads

COUNT = "--xla_force_host_platform_device_count"


@pytest.mark.parametrize(
    ("flags", "given", "threads"),
    [
        ("", None, None),
        ("--xla_cpu_enable_fast_math=false", None, None),
        (f"{COUNT}=2000", None, "4000"),
        (f"{COUNT}=8 {COUNT}=3000", None, "6000"),  # XLA takes the last one too
        (f"{COUNT}=2000", "3", "3"),
    ],
)
def test_two_threads_a_device_unless_the_number_is_given(monkeypatch, flags, given, threads):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setenv("NPROC", "to be undone")
    monkeypatch.delenv("NPROC")
    if given:
        monkeypatch.setenv("NPROC", given)
    enough_cpu_threads()
    assert os.environ.get("NPROC") == threads
