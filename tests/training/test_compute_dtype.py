"""`compute_dtype=bfloat16` is honoured by every stage; what stays fp32 is fp32 on accelerators too.

Products are known by their shapes: each part has a hidden width of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from tests.tiny import tiny_config
from unicom_jax.parallel.plan.topology import parse_topology
from unicom_jax.planning.estimate import abstract_mesh
from unicom_jax.planning.program import make_program
from unicom_jax.training.flops import loss_of

VISION, TEXT, DECODER, TRANSFORMER = 40, 44, 52, 56  # hidden widths of their MLPs


def config(**overrides):
    small = tiny_config(compute_dtype="bfloat16", codec__perceptual_weight=0.5, **overrides)
    small.encoder.vision.mlp_dim, small.encoder.text.mlp_dim = VISION, TEXT
    small.codec.decoder.mlp_dim = small.unified.flow_decoder.mlp_dim = DECODER
    small.unified.transformer.mlp_dim = TRANSFORMER
    return small


def products(jaxpr: Jaxpr) -> Iterator:
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield eqn
        for value in eqn.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                if isinstance(inner, ClosedJaxpr):
                    yield from products(inner.jaxpr)
                elif isinstance(inner, Jaxpr):
                    yield from products(inner)


def step_products(stage: str, **overrides) -> list:
    mesh = abstract_mesh("fsdp=-1", parse_topology("cpu:1"))
    program = make_program(config(**overrides), stage, mesh)
    total, arguments = loss_of(program.stage, program.frozen, program.batch)
    return list(products(jax.make_jaxpr(jax.value_and_grad(total))(*arguments).jaxpr))


def dtypes_of(found: list, width: int) -> set[str]:
    """Of the factors of products with an array that has this width."""
    return {
        str(variable.aval.dtype)
        for eqn in found
        if any(width in variable.aval.shape for variable in (*eqn.invars, *eqn.outvars))
        for variable in eqn.invars
    }


CASES = [
    ("encoder", (VISION, TEXT), {}),
    ("codec", (VISION, DECODER), {}),
    ("pretrain", (VISION, TRANSFORMER), {}),
    ("pretrain", (TRANSFORMER, DECODER), {"unified__pathway": "query"}),
]


@pytest.mark.parametrize(("stage", "widths", "overrides"), CASES, ids=lambda v: str(v)[:18])
def test_the_products_of_a_step_are_bf16(stage, widths, overrides):
    found = step_products(stage, **overrides)
    for width in widths:
        assert dtypes_of(found, width) == {"bfloat16"}, width
    wide = [eqn for eqn in found if all(x.aval.dtype == jnp.float32 for x in eqn.invars)]
    assert len(wide) < len(found) / 2 or stage == "codec"  # the compressor is half of this one
    # What stays fp32 says so, or a TPU would round its factors to bf16 and an H100 to TF32.
    assert all(eqn.params["precision"] is not None for eqn in wide)


def test_the_compressor_stays_fp32():
    found = step_products("codec", codec__latent_dim=16)
    hidden = 2 * 16  # of its MLP, which has no other product of these sizes
    shapes = {(16, hidden), (hidden, 16)}
    of_mlp = [eqn for eqn in found if shapes & {x.aval.shape for x in eqn.invars}]
    assert of_mlp and dtypes_of(of_mlp, hidden) == {"float32"}
