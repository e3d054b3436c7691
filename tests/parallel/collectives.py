"""What the compiled transformer says to other devices, on eight of them.

    python -m tests.parallel.collectives MESH

Prints a JSON list of [kind, shape] for every collective of a forward and backward pass.
"""

from __future__ import annotations

import json
import sys

import jax
import jax.numpy as jnp

from unicom_jax.core.activations import on_mesh
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.models.transformer import Transformer
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.plan.costs import KINDS
from unicom_jax.parallel.plan.hlo import parse_program
from unicom_jax.parallel.sharding import batch_sharding, param_shardings

# No two numbers alike, so that a shape identifies an array.
ROWS, SLOTS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCABULARY = 8, 88, 48, 4, 2, 10, 56, 104
MODEL = Transformer(VOCABULARY, WIDTH, 2, HEADS, KV_HEADS, HEAD_DIM, MLP, remat="full")


def compiled_text(line: str) -> str:
    mesh = make_mesh(line)

    def loss(params, tokens, positions, mask):
        with on_mesh(mesh):
            hidden = MODEL.embed(params, tokens)
            hidden, _ = MODEL(params, hidden, positions, mask)
            return jnp.mean(jnp.square(MODEL.logits(params, hidden)))

    places = param_shardings(MODEL.specs(), mesh)
    params = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        MODEL.abstract(),
        places,
    )

    def batch(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=batch_sharding(mesh))

    slots = batch(ROWS, SLOTS)
    arguments = params, slots, batch(ROWS, SLOTS, 2), MaskIntervals(slots, slots, slots, slots)
    step = jax.jit(jax.grad(loss), out_shardings=places)
    return step.lower(*arguments).compile().as_text()


def collectives(text: str) -> list[tuple[str, tuple[int, ...]]]:
    return [
        (one.opcode, array.shape)
        for computation in parse_program(text).computations.values()
        for one in computation.instructions
        if one.opcode in KINDS
        for array in one.outputs
    ]


if __name__ == "__main__":
    print(json.dumps(collectives(compiled_text(sys.argv[1]))))
