"""What a compiled program does on one device: products, bytes of main memory, collectives.

The program is followed as it runs: the body of a loop counts once per iteration, and a fusion's
memory traffic is its inputs and outputs. The parts of one loop's body may overlap in time,
different loops never do, so costs are kept by loop ("region").

XLA's own `cost_analysis` counts a loop's body once and does not count collectives.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

from unicom_jax.core.scopes import module_of
from unicom_jax.parallel.plan.arithmetic import Arithmetic, arithmetic_of
from unicom_jax.parallel.plan.hlo import Array, Computation, Instruction, Program
from unicom_jax.parallel.plan.products import kernel_cost, product_flops

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Opcodes that move nothing themselves.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("partition-id", "replica-id", "opt-barrier", "reshape", "while", "conditional", "call"),
    *("copy-done", "slice-done", "all-gather-done", "all-reduce-done", "async-done"),
    *("collective-permute-done", "async-update", "domain"),
    *("send", "send-done", "recv", "recv-done"),
}
_SOURCE = re.compile(r'op_name="([^"]*)"')
# On TPU a reduce-scatter is an all-reduce in a fusion that keeps only its part.
SCATTER = "all-reduce-scatter"


@dataclasses.dataclass(frozen=True)
class Collective:
    """One exchange between devices, with the number of its runs.

    Attributes:
      kind: one of `KINDS`.
      arrays: the inputs of a device.
      attributes: the instruction's attributes, including its groups.
      times: how often a step runs it.
      chain: a name that the pieces of one asynchronous exchange share; "" without pieces.
      source: the operation of the model that it comes from.
    """

    kind: str
    arrays: tuple[Array, ...]
    attributes: str
    times: int
    chain: str
    source: str


@dataclasses.dataclass
class Work:
    """What a device does by itself.

    Attributes:
      products: operations of products, by how they are computed.
      nbytes: bytes read from and written to main memory.
    """

    products: Counter[Arithmetic] = dataclasses.field(default_factory=Counter)
    nbytes: float = 0.0

    @property
    def flops(self) -> float:
        return sum(self.products.values())

    def add(self, other: Work) -> None:
        self.products.update(other.products)
        self.nbytes += other.nbytes


@dataclasses.dataclass(eq=False)
class Region:
    """What one loop's body does in a step, without nested loops; or the program outside loops.

    Attributes:
      times: how often a step runs it.
      modules: {module of the model: its work in all runs}; "" is the work of no module.
    """

    name: str
    times: int
    modules: dict[str, Work] = dataclasses.field(default_factory=lambda: defaultdict(Work))
    collectives: list[Collective] = dataclasses.field(default_factory=list)

    @property
    def flops(self) -> float:
        return sum(work.flops for work in self.modules.values())

    @property
    def nbytes(self) -> float:
        return sum(work.nbytes for work in self.modules.values())

    def add(self, other: Region) -> None:
        for name, work in other.modules.items():
            self.modules[name].add(work)
        self.collectives += other.collectives


@dataclasses.dataclass(frozen=True)
class Costs:
    """Attributes:
    regions: in the order of the program.
    unknown_loops: number of loops whose length the text does not give; each counts once.
    """

    regions: tuple[Region, ...]
    unknown_loops: int

    @property
    def flops(self) -> float:
        return sum(region.flops for region in self.regions)

    @property
    def nbytes(self) -> float:
        return sum(region.nbytes for region in self.regions)

    @property
    def collectives(self) -> list[tuple[Region, Collective]]:
        return [(region, one) for region in self.regions for one in region.collectives]


def count_costs(program: Program, kernels: Mapping[str, float] | None = None) -> Costs:
    """Follows the program from its entry.

    Args:
      kernels: {scope (`jax.named_scope`): share of their stated products that the kernels in this
        scope carry out}; 1 by default.
    """
    counter = _Counter(program, kernels or {})
    counter.follow(program.entry, 1, Region("step", 1))
    for region in counter.regions:
        region.collectives = _join_chains(region.collectives)
    return Costs(tuple(counter.regions), counter.unknown_loops)


def _join_chains(collectives: Iterable[Collective]) -> list[Collective]:
    """One entry for an asynchronous exchange that the program carries out in several pieces."""
    kept: dict[object, Collective] = {}
    for place, one in enumerate(collectives):
        kept.setdefault((one.chain, one.kind) if one.chain else place, one)
    return list(kept.values())


@dataclasses.dataclass
class _Counter:
    program: Program
    kernels: Mapping[str, float]
    regions: list[Region] = dataclasses.field(default_factory=list)
    unknown_loops: int = 0

    def follow(self, name: str, times: int, region: Region) -> None:
        if region not in self.regions:
            self.regions.append(region)
        computation = self.program.computations[name]
        for one in computation.instructions:
            if one.opcode == "while":
                turns = times * self._turns(one)
                self.follow(one.attribute("body"), turns, Region(_source(one), turns))
            elif one.opcode == "conditional":
                self._follow_dearest(_branches(one), times, region)
            elif one.opcode == "call":
                self.follow(one.attribute("to_apply"), times, region)
            elif one.opcode == "async-start":
                self.follow(one.attribute("calls"), times, region)
            else:
                self._count(computation, one, times, region)

    def _follow_dearest(self, branches: Iterable[str], times: int, region: Region) -> None:
        """Counts the branch with the most products, since it is unknown which branch runs."""
        counted = []
        for branch in branches:
            alone = _Counter(self.program, self.kernels)
            alone.follow(branch, times, Region(region.name, region.times))
            counted.append(alone)
        dearest = max(counted, key=_Counter.price)
        first, *inner = dearest.regions
        region.add(first)
        self.regions += inner
        self.unknown_loops += dearest.unknown_loops

    def price(self) -> tuple[float, float]:
        """Key for comparisons: products first, then main memory."""
        costs = Costs(tuple(self.regions), self.unknown_loops)
        return costs.flops, costs.nbytes

    def _count(self, where: Computation, one: Instruction, times: int, region: Region) -> None:
        work = region.modules[self._module(one, region)]
        if one.opcode == "fusion":
            self._look_inside(one.attribute("calls"), times, region)
        elif one.opcode.removesuffix("-start") in KINDS:
            region.collectives.append(_collective(where, one, times))
        elif one.opcode == "send" and (between := _between_slices(where, one, times)):
            region.collectives.append(between)
        else:
            self._add_products(where, one, times, work)
        work.nbytes += times * self._traffic(where, one)

    def _look_inside(self, fusion: str, times: int, region: Region) -> None:
        """Products and collectives within a fusion; its memory traffic is counted from outside."""
        where = self.program.computations[fusion]
        for one in where.instructions:
            if one.opcode == "fusion":
                self._look_inside(one.attribute("calls"), times, region)
            elif one.opcode.removesuffix("-start") in KINDS:
                found = _collective(where, one, times)
                if SCATTER in fusion:
                    found = dataclasses.replace(found, kind="reduce-scatter")
                region.collectives.append(found)
            else:
                self._add_products(where, one, times, region.modules[self._module(one, region)])

    def _add_products(self, where: Computation, one: Instruction, times: int, work: Work) -> None:
        if not (flops := product_flops(where, one)):
            return
        if kernel := kernel_cost(one) is not None:
            scopes = re.findall(r"\w+", _source(one))
            flops *= math.prod(share for scope, share in self.kernels.items() if scope in scopes)
        work.products[arithmetic_of(where, one, kernel)] += times * flops

    def _module(self, one: Instruction, region: Region) -> str:
        """The module of an instruction; without a source, that of the fused ones or of its loop."""
        if _SOURCE.search(one.attributes):
            return module_of(_source(one))
        if one.opcode == "fusion":
            inside = self.program.computations[one.attribute("calls")]
            named = (module_of(_source(part)) for part in reversed(inside.instructions))
            if found := next(filter(None, named), ""):
                return found
        return module_of(region.name)

    # ---- loops --------------------------------------------------------------------------------

    def _turns(self, loop: Instruction) -> int:
        """Iterations of a loop: the backend's count, else the bound of the loop's counter."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        condition = self.program.computations[loop.attribute("condition")]
        bounds = [int(value) for value in self._bounds(condition)]
        if len(bounds) == 1 and bounds[0] > 0:
            return bounds[0]
        self.unknown_loops += 1
        return 1

    def _bounds(self, condition: Computation) -> list[str]:
        """The integers that a loop's condition compares with; `scan` counts from 0."""
        found = []
        for one in condition.instructions:
            whole = one.outputs and one.outputs[0].dtype in ("s32", "s64", "u32")
            if one.opcode == "constant" and whole and one.inner.isdecimal():
                found.append(one.inner)
            elif one.opcode == "fusion":
                found += self._bounds(self.program.computations[one.attribute("calls")])
        return found

    # ---- main memory --------------------------------------------------------------------------

    def _traffic(self, where: Computation, one: Instruction) -> float:
        """Bytes that an instruction reads from and writes to main memory."""
        if one.opcode in FREE or one.opcode.removesuffix("-start") in KINDS:
            return 0.0  # exchanges are counted separately
        if one.opcode == "custom-call" and "llocateBuffer" in one.attributes:
            return 0.0
        if "AsyncCollective" in one.attributes[:200] and one.opcode == "custom-call":
            return 0.0
        if one.opcode == "fusion":
            return self._fusion_traffic(where, one)
        return _plain_traffic(where, one)

    def _fusion_traffic(self, where: Computation, one: Instruction) -> float:
        inside = self.program.computations[one.attribute("calls")]
        if SCATTER in inside.name:
            return 0.0
        read = 0.0
        for number, operand in enumerate(one.operands):
            arrays = list(where.arrays((operand,)))
            if len(arrays) == 1 and arrays[0].space == 0:
                read += min(arrays[0].nbytes, self._read(inside, number))
        return read + self._written(inside, one)

    def _read(self, inside: Computation, number: int) -> float:
        """Bytes that a fusion reads from its operand with this number."""
        if (parameter := inside.parameters.get(number)) is None:
            return 0.0
        return self._read_by_users(inside, parameter.name, parameter.outputs[0].nbytes)

    def _read_by_users(self, inside: Computation, name: str, whole: float) -> float:
        read = 0.0
        for user in inside.users.get(name, []):
            if user.opcode in ("bitcast", "reshape") or "output_to_operand" in user.attributes:
                read += self._read_by_users(inside, user.name, whole)
            elif user.opcode in ("dynamic-slice", "slice", "gather"):
                read += user.outputs[0].nbytes
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue  # written in place
            elif user.opcode in ("tuple", "custom-call") or _is_exchange(user):
                continue
            elif user.opcode == "fusion":
                calls = self.program.computations[user.attribute("calls")]
                places = [at for at, operand in enumerate(user.operands) if operand == name]
                read += sum(self._read(calls, at) for at in places)
            else:
                return whole
        return min(read, whole)

    def _written(self, inside: Computation, one: Instruction) -> float:
        """Bytes that a fusion writes to main memory."""
        root = inside.root
        names = root.operands if root.opcode == "tuple" else (root.name,)
        if len(names) != len(one.outputs):
            return sum(array.nbytes for array in one.outputs if array.space == 0)
        written = 0.0
        for name, array in zip(names, one.outputs, strict=True):
            if array.space == 0:
                written += _produced(inside, name, array.nbytes)
        return written


def _produced(inside: Computation, name: str, whole: float) -> float:
    """Bytes that are new in an output of a fusion."""
    one = inside.by_name[name]
    while one.opcode in ("bitcast", "reshape") and one.operands:
        one = inside.by_name[one.operands[0]]
    if one.opcode == "dynamic-update-slice":
        return sum(array.nbytes for array in inside.arrays(one.operands[1:2]))
    if one.opcode in ("parameter", "custom-call") or _is_exchange(one):
        return 0.0
    return whole


def _plain_traffic(where: Computation, one: Instruction) -> float:
    if (kernel := kernel_cost(one)) is not None:
        return kernel[1]  # its blocks may be read more than once
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        moved = (*one.outputs, *one.outputs)
    elif one.opcode == "dynamic-update-slice":
        update = tuple(where.arrays(one.operands[1:2]))
        moved = (*update, *update)
    elif one.opcode in ("copy-start", "slice-start"):
        moved = one.outputs[:2]  # its third value is a context
    else:
        moved = (*one.outputs, *where.arrays(one.operands))
    return sum(array.nbytes for array in moved if array.space == 0)


def _is_exchange(one: Instruction) -> bool:
    return one.opcode.removesuffix("-start").removesuffix("-done") in KINDS


def _branches(one: Instruction) -> list[str]:
    listed = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
    if listed:
        return re.findall(r"%?([\w.\-]+)", listed[1])
    return [one.attribute("true_computation"), one.attribute("false_computation")]


def _source(one: Instruction) -> str:
    found = _SOURCE.search(one.attributes)
    return found[1] if found else one.name


def _between_slices(where: Computation, one: Instruction, times: int) -> Collective | None:
    """What a TPU's host exchanges, on its behalf, with the hosts of other slices."""
    kind = re.search(r'megascale_transfer_type="(\w+)"', one.attributes)
    if kind is None:
        return None
    name = kind[1].lower().replace("_", "-")
    found = _collective(where, one, times)
    arrays = tuple(array for array in found.arrays if array.dtype != "token")
    return dataclasses.replace(found, kind=name if name in KINDS else KINDS[-1], arrays=arrays)


def _collective(where: Computation, one: Instruction, times: int) -> Collective:
    chain = re.search(r'chain_id="(\w+)"', one.attributes)
    return Collective(
        kind=one.opcode.removesuffix("-start"),
        arrays=tuple(where.arrays(one.operands)),
        attributes=one.attributes,
        times=times,
        chain=chain[1] if chain else "",
        source=_source(one),
    )
