"""Floating-point operations that one training step needs, for MFU.

The convention is PaLM's (Chowdhery et al. 2022, appendix B): only matrix products and convolutions
count, at two operations per multiply-add, logits included; an embedding look-up is no product.
Recomputation in the backward pass (remat, chunked attention) does not count: utilisation is about
what the loss needs. So logits count at the slots that predict a token, and attention in packed rows
(`models/transformer.py`) counts the pairs of slots that the mask shows, where PaLM counts all
pairs; the caller gives these shares. Attention among a picture's patches counts all pairs,
including padding.

A product counts once for the forward pass and once more for each factor that has a gradient: three
times in the middle of a trained network, twice if one factor is data or a frozen weight, once in a
frozen encoder. The products are those of the traced loss, so the same few rules count every stage.
XLA's own `cost_analysis` counts a scanned layer only once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from unicom_jax.core.losses import LossTerms
from unicom_jax.core.module import Params
from unicom_jax.models.transformer import ROW_ATTENTION
from unicom_jax.training.state import merge, split
from unicom_jax.training.step import Stage, row_keys, weighted_total


class Shares(NamedTuple):
    """The shares that a loss needs of work that it may skip; 1: all.

    Attributes:
      predicted: share of slots that predict a token; work under a condition (`jax.lax.cond`) counts
        by this share. `Stage.predicted` measures it for a batch.
      visible: share of the pairs of a row's slots that the mask shows, from `Stage.visible`.
    """

    predicted: float = 1.0
    visible: float = 1.0


def step_flops(
    stage: Stage, frozen: Params, batch: Any, predicted: float = 1.0, visible: float = 1.0
) -> float:
    """Operations of one step of `stage` on a batch of this shape, forward and backward.

    Traces the loss and computes nothing: only shapes and dtypes of `frozen` and `batch` matter. The
    whole batch counts, over all devices. As in PaLM the optimiser does not count; nor do terms of
    the loss that are only reported.

    Args:
      predicted, visible: as in `Shares`.

    Raises:
      ValueError: a product in a loop whose length is unknown.
    """
    return flops_by_shares(stage, frozen, batch)(Shares(predicted, visible))


def flops_by_shares(stage: Stage, frozen: Params, batch: Any) -> Callable[[Shares], float]:
    """`step_flops` for any shares, traced once."""
    total, arguments = loss_of(stage, frozen, batch)
    jaxpr = jax.make_jaxpr(total)(*arguments).jaxpr
    learns = [True] * len(jax.tree.leaves(arguments[0]))
    learns += [False] * (len(jaxpr.invars) - len(learns))
    return lambda shares: _count(jaxpr, learns, shares)[0]


def computed(
    stage: Stage,
    frozen: Params,
    batch: Any,
    kernels: bool = False,
    weigh: Callable[[JaxprEqn], float] = lambda _: 1.0,
) -> tuple[float, float, float]:
    """Operations, including recomputation in the backward pass; bytes of all products' arrays; and
    the operations with a weight for each product.

    Every slot is assumed to predict a token and to see all of its row. The bytes are those of
    factors and results, each counted once per product.

    Args:
      kernels: count Pallas kernels by the costs that they state, on platforms that have them.
      weigh: gives the weight of a product or a kernel.
    """
    total, arguments = loss_of(stage, frozen, batch)
    jaxpr = jax.make_jaxpr(jax.value_and_grad(total))(*arguments).jaxpr
    nothing = [False] * len(jaxpr.invars)  # the traced program contains the gradient's products
    flops, moved = PRODUCTS, dict.fromkeys(PRODUCTS, _moved)
    if kernels:
        flops = flops | {KERNEL: lambda eqn: float(eqn.params["cost_estimate"].flops)}
        moved = moved | {KERNEL: lambda eqn: float(eqn.params["cost_estimate"].bytes_accessed)}
    weighed = {
        name: lambda eqn, count=count: count(eqn) * weigh(eqn) for name, count in flops.items()
    }
    return tuple(_count(jaxpr, nothing, products=table)[0] for table in (flops, moved, weighed))


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


def _count(
    jaxpr: Jaxpr,
    learns: Sequence[bool],
    shares: Shares = Shares(),  # noqa: B008 - a tuple of constants
    products: Mapping[str, Callable[[JaxprEqn], float]] | None = None,
) -> tuple[float, list[bool]]:
    """Operations of a program, and which of its outputs have a gradient.

    Args:
      learns: whether each input has a gradient.
      products: how much a product counts, by primitive; by default its operations (`PRODUCTS`).
    """
    products = PRODUCTS if products is None else products
    known = dict.fromkeys(jaxpr.constvars, False) | dict(zip(jaxpr.invars, learns, strict=True))

    def has_gradient(variable: Any) -> bool:
        return not isinstance(variable, Literal) and known[variable]

    total = 0.0
    for eqn in _needed(jaxpr):
        flops, out = _count_one(
            eqn, [has_gradient(variable) for variable in eqn.invars], shares, products
        )
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


def _count_one(
    eqn: JaxprEqn, learns: list[bool], shares: Shares, products: Mapping
) -> tuple[float, list[bool]]:
    if ROW_ATTENTION in str(eqn.source_info.name_stack).split("/"):
        # Equations inside this one do not carry the scopes around it.
        flops, out = _count_within(eqn, learns, shares, products)
        return shares.visible * flops, out
    return _count_within(eqn, learns, shares, products)


def _count_within(
    eqn: JaxprEqn, learns: list[bool], shares: Shares, products: Mapping
) -> tuple[float, list[bool]]:
    name, params = eqn.primitive.name, eqn.params
    if name in products:
        return products[name](eqn) * (1 + sum(learns)), [any(learns)] * len(eqn.outvars)
    if name == "stop_gradient":
        return 0.0, [False]
    if name == "scan":
        return _count_scan(eqn, learns, shares, products)
    if name == "cond":
        branches = params["branches"]
        if "branches_platforms" in params:  # kernels of equal cost, then plain operations
            branches = branches[:1] if KERNEL in products else branches[-1:]
        counted = [_count(_open(one), learns[1:], shares, products) for one in branches]
        out = [any(choices) for choices in zip(*(out for _, out in counted), strict=True)]
        least, most = min(flops for flops, _ in counted), max(flops for flops, _ in counted)
        return least + shares.predicted * (most - least), out
    inner = [_open(value) for value in params.values() if isinstance(value, ClosedJaxpr | Jaxpr)]
    if name == "while":
        if any(_count(body, [True] * len(body.invars))[0] for body in inner):
            raise ValueError("a product in a while loop cannot be counted; use jax.lax.scan")
    elif len(inner) == 1 and len(inner[0].invars) == len(learns):  # jit, checkpoint, custom_vjp
        return _count(inner[0], learns, shares, products)
    return 0.0, [any(learns)] * len(eqn.outvars)


def _count_scan(
    eqn: JaxprEqn, learns: list[bool], shares: Shares, products: Mapping
) -> tuple[float, list[bool]]:
    body = _open(eqn.params["jaxpr"])
    carried = _passed_whole(eqn.outvars, body.outvars)
    first = _passed_whole(eqn.invars, body.invars) - carried  # constants come before carries
    while True:  # a carry that gets a gradient in one iteration has it from the start of the next
        flops, out = _count(body, learns, shares, products)
        carry = learns[first : first + carried]
        grown = [before or after for before, after in zip(carry, out[:carried], strict=True)]
        if grown == carry:
            return eqn.params["length"] * flops, out
        learns = [*learns[:first], *grown, *learns[first + carried :]]


def _passed_whole(outside: Sequence[Any], inside: Sequence[Any]) -> int:
    """How many of a scan's arrays are the same in its body; it cuts the others along an axis.

    JAX's own names for these numbers have changed between versions; the shapes have not.
    """
    return sum(x.aval.ndim == y.aval.ndim for x, y in zip(outside, inside, strict=True))


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


def _moved(eqn: JaxprEqn) -> float:
    arrays = (variable.aval for variable in (*eqn.invars, *eqn.outvars))
    return float(sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays))


KERNEL = "pallas_call"
PRODUCTS = {"dot_general": _matrix_product, "conv_general_dilated": _convolution}
