"""Floating-point operations that one training step needs, for MFU.

The convention is PaLM's (Chowdhery et al. 2022, appendix B): only matrix products and convolutions
count, at two operations a multiply-add, logits included; looking up an embedding is no product.
Attention counts all pairs of a row, those that the mask hides too. What is computed again in the
backward pass (remat, chunked attention) does not count: utilisation is of what the loss needs.

A product counts once for the forward pass and once more for each factor that has a gradient: three
times where it is in the middle of a trained network, twice where one factor is data or a frozen
weight, once in a frozen encoder. The products are those of the loss as it is traced, so every stage
is counted by the same few rules. XLA's own `cost_analysis` counts a scanned layer only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Params
from unicom_jax.training.state import merge, split
from unicom_jax.training.step import Stage, row_keys, weighted_total


def step_flops(stage: Stage, frozen: Params, batch: Any) -> float:
    """Operations of one step of `stage` on a batch of this shape, forward and backward.

    Traces the loss and computes nothing: only shapes and dtypes of `frozen` and `batch` matter. The
    whole batch counts, over all devices. The optimiser does not, as in PaLM; terms of the loss that
    are only reported do not either.

    Raises:
      ValueError: a product in a loop whose length is unknown.
    """
    total, arguments = loss_of(stage, frozen, batch)
    traced = jax.make_jaxpr(total)(*arguments)
    learns = [True] * len(jax.tree.leaves(arguments[0]))
    learns += [False] * (len(traced.jaxpr.invars) - len(learns))
    return _count(traced.jaxpr, learns)[0]


def computed_flops(stage: Stage, frozen: Params, batch: Any) -> float:
    """As `step_flops`, with what the backward pass computes again (remat, chunked attention)."""
    total, arguments = loss_of(stage, frozen, batch)
    traced = jax.make_jaxpr(jax.value_and_grad(total))(*arguments)
    return _count(traced.jaxpr, [False] * len(traced.jaxpr.invars))[0]


def loss_of(stage: Stage, frozen: Params, batch: Any) -> tuple[Callable[..., jax.Array], tuple]:
    """A stage's loss, and the shapes and types to trace it on: (trained, held, frozen, batch)."""

    def total(trained: Params, held: Params, frozen: Params, batch: Any) -> jax.Array:
        keys = row_keys(jax.random.key(0), jax.tree.leaves(batch)[0].shape[0])
        terms: LossTerms = stage.loss(merge(trained, held), frozen, batch, keys)
        return weighted_total(
            terms, stage.weights, {name: count for name, (_, count) in terms.items()}
        )

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (frozen, batch))
    return total, (*split(stage.module.abstract(), stage.freeze), *shapes)


def _count(jaxpr: Jaxpr, learns: Sequence[bool]) -> tuple[float, list[bool]]:
    """Operations of a program, and which of its outputs have a gradient.

    Args:
      learns: for each input whether it has a gradient.
    """
    known = dict.fromkeys(jaxpr.constvars, False) | dict(zip(jaxpr.invars, learns, strict=True))

    def has_gradient(variable: Any) -> bool:
        return not isinstance(variable, Literal) and known[variable]

    total = 0.0
    for eqn in _needed(jaxpr):
        flops, out = _count_one(eqn, [has_gradient(variable) for variable in eqn.invars])
        total += flops
        known |= zip(eqn.outvars, out, strict=True)
    return total, [has_gradient(variable) for variable in jaxpr.outvars]


def _needed(jaxpr: Jaxpr) -> list[JaxprEqn]:
    """The equations that an output depends on, in order."""
    wanted = {variable for variable in jaxpr.outvars if not isinstance(variable, Literal)}
    kept = []
    for eqn in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(eqn.outvars):
            wanted.update(variable for variable in eqn.invars if not isinstance(variable, Literal))
            kept.append(eqn)
    return kept[::-1]


def _count_one(eqn: JaxprEqn, learns: list[bool]) -> tuple[float, list[bool]]:
    name, params = eqn.primitive.name, eqn.params
    if name in PRODUCTS:
        return PRODUCTS[name](eqn) * (1 + sum(learns)), [any(learns)]
    if name == "stop_gradient":
        return 0.0, [False]
    if name == "scan":
        return _count_scan(params, learns)
    if name == "cond":
        counted = [_count(branch.jaxpr, learns[1:]) for branch in params["branches"]]
        out = [any(choices) for choices in zip(*(out for _, out in counted), strict=True)]
        return max(flops for flops, _ in counted), out
    inner = [_open(value) for value in params.values() if isinstance(value, ClosedJaxpr | Jaxpr)]
    if name == "while":
        if any(_count(body, [True] * len(body.invars))[0] for body in inner):
            raise ValueError("a product in a while loop cannot be counted; use jax.lax.scan")
    elif len(inner) == 1 and len(inner[0].invars) == len(learns):  # jit, checkpoint, custom_vjp
        return _count(inner[0], learns)
    return 0.0, [any(learns)] * len(eqn.outvars)


def _count_scan(params: dict[str, Any], learns: list[bool]) -> tuple[float, list[bool]]:
    first, carried = params["num_consts"], params["num_carry"]
    while True:  # what one turn gives the carry a gradient, the next one has from its start
        flops, out = _count(params["jaxpr"].jaxpr, learns)
        carry = learns[first : first + carried]
        grown = [before or after for before, after in zip(carry, out[:carried], strict=True)]
        if grown == carry:
            return params["length"] * flops, out
        learns = [*learns[:first], *grown, *learns[first + carried :]]


def _open(jaxpr: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _matrix_product(eqn: JaxprEqn) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left, out = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return 2.0 * math.prod(out) * math.prod(left[axis] for axis in contracted)


def _convolution(eqn: JaxprEqn) -> float:
    kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * math.prod(out) * math.prod(kernel) / outputs


PRODUCTS = {"dot_general": _matrix_product, "conv_general_dilated": _convolution}
