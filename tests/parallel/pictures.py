"""What eight devices compute of the pictures of rows whose slots four of them share.

    python -m tests.parallel.pictures

Prints the operations of one device, forward and backward, and those of one device alone.
"""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp

from unicom_jax.core.activations import ROWS, SLOTS, on_mesh, place
from unicom_jax.families.slots import each_alone, side_by_side
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.plan.costs import count_costs
from unicom_jax.parallel.plan.hlo import parse_program
from unicom_jax.parallel.sharding import batch_sharding, replicated

BATCH, PICTURES, TOKENS, IN, OUT = 8, 4, 6, 48, 56


def operations(line: str) -> float:
    mesh = make_mesh(line, jax.devices() if line else jax.devices()[:1])

    def loss(kernel, features):
        with on_mesh(mesh):
            vectors = each_alone(features) @ kernel
            slots = side_by_side(vectors, BATCH).reshape(BATCH, -1, OUT)
            return jnp.sum(jnp.square(place(slots, ROWS, SLOTS)))

    arguments = (
        jax.ShapeDtypeStruct((IN, OUT), jnp.float32, sharding=replicated(mesh)),
        jax.ShapeDtypeStruct(
            (BATCH, PICTURES, TOKENS, IN), jnp.float32, sharding=batch_sharding(mesh)
        ),
    )
    compiled = jax.jit(jax.grad(loss)).lower(*arguments).compile()
    return count_costs(parse_program(compiled.as_text())).flops


if __name__ == "__main__":
    print(json.dumps([operations("data=2,context=4"), operations("")]))
