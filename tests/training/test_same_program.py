"""Every process compiles the same program, as the processes of one run must."""

from __future__ import annotations

import os
import subprocess
import sys

STAGES = ("encoder", "autoencoder", "codec", "pretrain", "reca")
SCRIPT = f"""
import hashlib
from tests.tiny import tiny_config
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.planning.program import make_program

for stage in {STAGES}:
    config = tiny_config(stages=("encoder", "autoencoder", "codec", stage))
    text = make_program(config, stage, make_mesh(config.mesh)).lower().as_text()
    print(stage, hashlib.sha256(text.encode()).hexdigest())
"""


def test_steps_do_not_depend_on_the_hashes_of_strings():
    """The order of a set of names differs between processes, and so would a program that follows
    it: compilation caches would miss, and processes of one run would wait for each other."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "3")  # {"text/parts", "flow/parts"} is in another order
    ]
    first, second = (process.communicate()[0].splitlines() for process in processes)
    assert [process.returncode for process in processes] == [0, 0]
    assert len(first) == len(STAGES) and first == second
