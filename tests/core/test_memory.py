"""Freed memory stays in the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from unicom_jax.core.memory import computes_on_cpu

FAULTS_OF_A_SECOND_BUFFER = """
import resource
from unicom_jax.core.memory import keep_freed_memory

kept = {call}
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b'1') * 2**25  # 8192 pages
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, faults)
"""


def second_buffer(call: str) -> tuple[str, int]:
    code = FAULTS_OF_A_SECOND_BUFFER.format(call=call)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kept, faults = out.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="speaks of glibc")
def test_a_freed_buffer_is_used_again_without_page_faults():
    kept, faults = second_buffer("keep_freed_memory()")
    if kept == "False":
        pytest.skip("the C library is not glibc")
    assert faults < 100
    assert second_buffer("None")[1] > 1000


@pytest.mark.parametrize(
    ("platforms", "on_cpu"), [("cpu", True), ("tpu", False), ("cuda,cpu", False)]
)
def test_the_chosen_platform_decides(monkeypatch, platforms, on_cpu):
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert computes_on_cpu() is on_cpu
