"""A plan without a compiler: bytes from the shardings, all else by formula; marked as an estimate.

Memory is what a device stores (weights, moments, average, frozen parts, batch), the gradients,
what the backward pass keeps of the forward pass (as JAX traces it, with remat), and twice the
largest array in between. Main memory's traffic is all of this, written and read once per step, plus
the factors and results of all products. These include the scores of attention, which only a kernel
(`attention_backend="fused"`) keeps on the chip, never a fusion. Links carry what the placement
requires:

    weights   gathered over fsdp for the forward and the backward pass, gradients scattered back;
              all-reduced where their shards are not whole tiles of a TPU (`planning/tiles.py`)
    tensor    two all-reduces of a layer's hidden states, forward and backward
    slice     gradients, reduced over slices (and `data`)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.sharding import AbstractMesh, AxisType
from ml_collections import ConfigDict

from unicom_jax.config import to_json
from unicom_jax.core.module import iter_specs
from unicom_jax.parallel import sharding
from unicom_jax.parallel.accelerators import Accelerator, preset_mesh
from unicom_jax.parallel.mesh import AUTO, AXES, parse_mesh
from unicom_jax.parallel.plan.arithmetic import slowdown, traced_arithmetic
from unicom_jax.parallel.plan.roofline import Part, Roofline
from unicom_jax.parallel.plan.topology import Topology
from unicom_jax.parallel.plan.traffic import Exchange, received
from unicom_jax.planning.plan import ESTIMATED, StagePlan, facts_of, shares_of
from unicom_jax.planning.program import StepProgram, gradient_bytes, local_bytes, make_program
from unicom_jax.planning.tiles import is_broken
from unicom_jax.training.flops import Shares, computed, flops_by_shares, loss_of
from unicom_jax.training.state import split


@dataclasses.dataclass(frozen=True)
class Traced:
    """What the loss of a batch of `rows` rows costs, whatever the placement.

    Attributes:
      model_flops: the result of `flops_by_shares`.
      computed_flops: operations over all pairs of slots, recomputation included.
      moved: bytes of the products' factors and results.
      weighed_flops: the computed ones, with fp32 products multiplied by their slowdown.
      kept: bytes that the backward pass keeps of the forward pass.
      largest: bytes of the largest array in between.
    """

    rows: int
    model_flops: Callable[[Shares], float]
    computed_flops: float
    moved: float
    weighed_flops: float
    kept: float
    largest: float


_TRACED: dict[str, Traced] = {}  # tracing takes seconds, and a search tries many meshes


def estimate_stage(config: ConfigDict, name: str, topology: Topology) -> StagePlan:
    """Like `plan_stage`, but nothing is compiled."""
    mesh = abstract_mesh(config.mesh, topology)
    program = make_program(config, name, mesh)
    traced = _trace_once(config, name, program, topology.accelerator)
    rows = config[name].batch_size / traced.rows
    facts = facts_of(config, name, topology, program)
    shards = math.prod(mesh.shape[axis] for axis in sharding.BATCH_AXES)
    trained, _ = split(program.state.params, program.stage.freeze)
    held, gradients = sum(facts["held"].values()), local_bytes(trained)
    at_once = rows * (traced.kept + 2 * traced.largest) / (shards * config[name].accumulate)
    flops = rows * traced.computed_flops / topology.devices
    weighed = rows * traced.weighed_flops / topology.devices
    moved = 2 * (held + gradients) + rows * traced.moved / topology.devices
    exchanges = tuple(_exchanges(config, program, topology, shards))
    return StagePlan(
        **facts,
        model_flops=rows * traced.model_flops(shares_of(facts["visible"])),
        all_pairs_flops=rows * traced.model_flops(Shares()),
        peak=held + gradients + at_once,
        computed_flops=flops,
        roofline=_roofline(topology, weighed, moved, exchanges),
        how=ESTIMATED,
    )


def _trace_once(
    config: ConfigDict, name: str, program: StepProgram, accelerator: Accelerator | None
) -> Traced:
    """Traces once for all batch sizes: every field of the result grows with the rows."""
    same = config.copy_and_resolve_references()
    same.mesh, same[name].accumulate, same[name].batch_size = "", 1, 1
    key = f"{name} {accelerator and accelerator.name} {to_json(same)}"
    if key not in _TRACED:
        loss, rows = (program.stage, program.frozen, program.batch), config[name].batch_size
        weigh = _weigher(accelerator)
        counts = flops_by_shares(*loss), *computed(*loss, accelerator is not None, weigh)
        _TRACED[key] = Traced(rows, *counts, *_activations(program))
    return _TRACED[key]


def _weigher(accelerator: Accelerator | None) -> Callable[[JaxprEqn], float]:
    """Gives how much longer a product takes than one of bfloat16 numbers."""
    if accelerator is None:
        return lambda eqn: 1.0
    return lambda eqn: slowdown(traced_arithmetic(eqn), accelerator)


def abstract_mesh(text: str, topology: Topology) -> AbstractMesh:
    """The mesh that a line of `parallel.mesh` describes, without devices."""
    if text == AUTO:
        text = preset_mesh(topology.device_kind, topology.devices, topology.slices)
    sizes = parse_mesh(text, topology.devices)
    if topology.slices > 1 and sizes[0] != topology.slices:
        raise ValueError(
            f"mesh={text!r} has slice={sizes[0]}, but there are {topology.slices} slices; write "
            f"slice={topology.slices}"
        )
    return AbstractMesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES))


# ---- memory -----------------------------------------------------------------------------------


def _activations(program: StepProgram) -> tuple[float, float]:
    """Bytes that the backward pass keeps of the forward pass, and of the largest array between.

    Both are for the whole batch. Weights that are kept do not count.
    """
    total, arguments = loss_of(program.stage, program.frozen, program.batch)
    given = {(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(arguments)}

    def backward(trained: Any, *others: Any) -> Any:
        return jax.vjp(lambda trained: total(trained, *others), trained)[1]

    kept = jax.eval_shape(backward, *arguments)
    own = [x for x in jax.tree.leaves(kept) if (x.shape, x.dtype) not in given]
    largest = max(_sizes(jax.make_jaxpr(total)(*arguments).jaxpr, given), default=0)
    return float(sum(map(_nbytes, own))), float(largest)


def _nbytes(array: Any) -> int:
    return int(np.prod(array.shape)) * array.dtype.itemsize


def _sizes(jaxpr: Jaxpr, given: set) -> Iterator[int]:
    """Bytes of every value that a program computes."""
    for eqn in jaxpr.eqns:
        for value in eqn.outvars:
            aval = value.aval
            if hasattr(aval, "shape") and (aval.shape, aval.dtype) not in given:
                yield int(np.prod(aval.shape)) * getattr(aval.dtype, "itemsize", 4)
        for inner in eqn.params.values():
            if isinstance(inner, ClosedJaxpr):
                yield from _sizes(inner.jaxpr, given)
            elif isinstance(inner, Jaxpr):
                yield from _sizes(inner, given)


# ---- links ------------------------------------------------------------------------------------


def _exchanges(
    config: ConfigDict, program: StepProgram, topology: Topology, shards: int
) -> Iterator[Exchange]:
    mesh, parts = program.trainer.mesh, program.trainer.accumulate
    bytes_each = np.dtype(jax.numpy.dtype(config.compute_dtype)).itemsize
    trained, _ = split(program.stage.module.specs(), program.stage.freeze)
    specs = [spec for _, spec in iter_specs(trained)]
    weights = sum(_over_tensor(spec, mesh) for spec in specs)

    def exchange(kind: str, axes: tuple[str, ...], what: str, whole: float) -> Iterator[Exchange]:
        if math.prod(mesh.shape[axis] for axis in axes) > 1:
            yield _exchange(kind, axes, what, whole, mesh, topology)

    yield from exchange("all-gather", ("fsdp",), "weights", 2 * parts * weights * bytes_each)
    gradient = gradient_bytes(config)
    torn = [spec for spec in specs if topology.is_tpu and is_broken(spec, mesh, gradient)]
    whole = sum(_over_tensor(spec, mesh) for spec in torn)
    for kind, part in (("all-reduce", whole), ("reduce-scatter", weights - whole)):
        if part > 0:
            yield from exchange(kind, ("fsdp",), "weights", parts * part * gradient)
    copies = ("slice", "data")
    yield from exchange("all-reduce", copies, "weights", weights / mesh.shape["fsdp"] * gradient)
    outward = [spec for spec in specs if spec.axes[-2:-1] in (("heads",), ("mlp",))]
    hidden = sum(spec.size // spec.shape[-2] for spec in outward)  # layers x width
    whole = 2 * program.tokens / shards * hidden * bytes_each  # forward and backward
    yield from exchange("all-reduce", ("tensor",), "activations", whole)


def _over_tensor(spec: Any, mesh: Any) -> float:
    placed = sharding.param_sharding(spec, mesh).spec
    names = {name for axes in placed for name in ((axes,) if isinstance(axes, str) else axes or ())}
    return spec.size / (mesh.shape["tensor"] if "tensor" in names else 1)


def _exchange(
    kind: str, axes: tuple[str, ...], what: str, whole: float, mesh: Any, topology: Topology
) -> Exchange:
    """Assumes half of a torus's link rate, without regard to which links a group can use."""
    members = _members(axes, mesh)
    domains = len(set((members // _domain(topology)).tolist()))
    near, far = received(kind, whole, len(members), domains)
    accelerator = topology.accelerator
    if accelerator is None:
        return Exchange(kind, axes, what, 1, near, far, 0.0, 0.0)
    rate = accelerator.link * max(accelerator.torus, 1)
    used = tuple(axis for axis in axes if mesh.shape[axis] > 1)
    return Exchange(kind, used, what, 1, near, far, near / rate, far / accelerator.network)


def _members(axes: tuple[str, ...], mesh: Any) -> np.ndarray:
    """Numbers of the first device of a mesh and of those along some axes from it."""
    numbers = np.arange(mesh.size).reshape(tuple(mesh.shape.values()))
    first = tuple(slice(None) if axis in axes else 0 for axis in mesh.shape)
    return numbers[first].ravel()


def _domain(topology: Topology) -> int:
    """Number of devices that fast links join: those of a slice or of a node."""
    if topology.is_tpu or topology.accelerator is None:
        return topology.devices // topology.slices
    return topology.shape[1]


def _roofline(
    topology: Topology, flops: float, moved: float, exchanges: tuple[Exchange, ...]
) -> Roofline:
    accelerator = topology.accelerator
    if accelerator is None:
        return Roofline((), exchanges)
    seconds = (
        flops / accelerator.flops,
        moved / accelerator.hbm,
        sum(one.near_seconds for one in exchanges),
        sum(one.far_seconds for one in exchanges),
    )
    return Roofline((Part("step", 1, seconds),), exchanges)
