"""What the compiled step of a stage exchanges on eight devices, at two batch sizes.

    python -m tests.parallel.whole_step '{"stage": "pretrain", "mesh": "slice=2,fsdp=4"}'

Nothing runs. A case is `stage`, `mesh` and overrides of `tests.tiny.tiny_config`. Prints a line of
JSON: for each number of rows the `results` of all exchanges, [kind, shape], and the `bytes` that a
device receives in a step, of weights and of activations.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from tests.parallel.collectives import collectives
from tests.tiny import tiny_config
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.plan.costs import count_costs
from unicom_jax.parallel.plan.hlo import parse_program
from unicom_jax.parallel.plan.topology import parse_topology
from unicom_jax.parallel.plan.traffic import fabric_of, price
from unicom_jax.planning.program import make_program, weight_sizes

ROWS = (88, 104)  # eight devices have 11 or 13 each: no size of the tiny model, nor part of one


def exchanges(stage: str, mesh: str, rows: int, **overrides: Any) -> dict[str, Any]:
    config = tiny_config(**{f"{stage}__batch_size": rows, "mesh": mesh, **overrides})
    devices = make_mesh(mesh)
    program = make_program(config, stage, devices)
    text = program.lower().compile().as_text()
    fabric = fabric_of(parse_topology("cpu:8"), devices, weight_sizes(program, devices))
    received = {"weights": 0.0, "activations": 0.0}
    for _, one in count_costs(parse_program(text)).collectives:
        for exchange in price(one, fabric):
            received[exchange.what] += exchange.near + exchange.far
    return {"results": collectives(text), "bytes": received}


if __name__ == "__main__":
    case = json.loads(sys.argv[1])
    print(json.dumps({rows: exchanges(rows=rows, **case) for rows in ROWS}))
