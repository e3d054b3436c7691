"""What the family of `painter.py` trains on one device and on eight, and what it draws on eight.

Prints two lines of JSON.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.families.eight WORKDIR
"""

from __future__ import annotations

import json
import sys

import pytest

from tests.families import painter
from tests.inference.eight import results
from tests.parallel.eight import run
from unicom_jax.inference.generator import Generator

MESH = "data=2,fsdp=2,tensor=2"


def main() -> None:
    with pytest.MonkeyPatch.context() as patch:
        painter.register(patch)
        one, eight = (run("pretrain", mesh, 4, **painter.CHOSEN) for mesh in ("", MESH))
        drawn = results(Generator.load(sys.argv[1], mesh=MESH))
    print(json.dumps(one))
    print(json.dumps({**eight, **drawn}))


if __name__ == "__main__":
    main()
