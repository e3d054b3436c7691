"""The least time that a step can take, and what limits it.

Every loop of the program takes at least as long as its slowest part: products at the peak rate,
main memory, links within a domain, network between domains. The parts of one loop may overlap;
loops run one after the other. So a step takes at least the sum over loops of each one's slowest
part ("overlapped"), and the sum of all parts if nothing overlaps ("in turn"). Real steps are in
between, or slower if products do not reach their peak.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from unicom_jax.core.scopes import module_of
from unicom_jax.parallel.accelerators import Accelerator
from unicom_jax.parallel.plan.arithmetic import slowdown
from unicom_jax.parallel.plan.costs import Costs, Region, Work
from unicom_jax.parallel.plan.traffic import Exchange, Fabric, price, total

TERMS = ("compute", "memory", "links", "network")
NOTHING = (0.0,) * len(TERMS)


@dataclasses.dataclass(frozen=True)
class Part:
    """Seconds of one region's terms, in the order of `TERMS`."""

    name: str
    times: int
    seconds: tuple[float, ...]

    @property
    def slowest(self) -> float:
        return max(self.seconds)


@dataclasses.dataclass(frozen=True)
class ModuleTime:
    """The time that a module of the model takes in a step; "" is all that belongs to no module.

    Attributes:
      flops: operations of its products on a device.
      seconds: seconds of its terms, in the order of `TERMS`.
    """

    name: str
    flops: float
    seconds: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Attributes:
    parts: the regions of the program, in order.
    exchanges: exchanges between devices, combined by kind.
    modules: the same work by the model's modules, the longest first; empty in an estimate.
    wide: seconds of products with fp32 factors, which take longer than the bf16 peak allows.
    """

    parts: tuple[Part, ...]
    exchanges: tuple[Exchange, ...]
    modules: tuple[ModuleTime, ...] = ()
    wide: float = 0.0

    @property
    def overlapped(self) -> float:
        return sum(part.slowest for part in self.parts)

    @property
    def in_turn(self) -> float:
        return sum(sum(part.seconds) for part in self.parts)

    @property
    def terms(self) -> dict[str, float]:
        """Seconds of each term over the whole step."""
        return {term: sum(part.seconds[at] for part in self.parts) for at, term in enumerate(TERMS)}

    @property
    def bound(self) -> dict[str, float]:
        """The seconds of the overlapped step for which each term is the slowest."""
        shares = dict.fromkeys(TERMS, 0.0)
        for part in self.parts:
            shares[TERMS[part.seconds.index(part.slowest)]] += part.slowest
        return shares

    @property
    def binding(self) -> str:
        bound = self.bound
        return max(bound, key=bound.__getitem__)


def make_roofline(costs: Costs, fabric: Fabric) -> Roofline:
    """Without an accelerator with known peaks all seconds are 0; bytes are still counted."""
    accelerator = fabric.topology.accelerator
    parts, exchanges, modules = [], [], {}
    for region in costs.regions:
        seconds = {name: _alone(work, accelerator) for name, work in region.modules.items()}
        for collective in region.collectives:
            priced = price(collective, fabric)
            exchanges += priced
            name = module_of(collective.source) or module_of(region.name)
            seconds[name] = _sum((seconds.get(name, NOTHING), _between(priced)))
        parts.append(Part(region.name, region.times, _sum(seconds.values())))
        for name, found in seconds.items():
            before = modules.get(name, ModuleTime(name, 0.0, NOTHING))
            flops = before.flops + (region.modules[name].flops if name in region.modules else 0.0)
            modules[name] = ModuleTime(name, flops, _sum((before.seconds, found)))
    by_length = sorted(modules.values(), key=lambda one: -sum(one.seconds))
    wide = sum(_wide(region, accelerator) for region in costs.regions) if accelerator else 0.0
    return Roofline(tuple(parts), tuple(total(exchanges)), tuple(by_length), wide)


def _alone(work: Work, accelerator: Accelerator | None) -> tuple[float, ...]:
    """Seconds of a device's own work, in the order of `TERMS`."""
    if accelerator is None:
        return NOTHING
    needed = sum(flops * slowdown(how, accelerator) for how, flops in work.products.items())
    return needed / accelerator.flops, work.nbytes / accelerator.hbm, 0.0, 0.0


def _between(exchanges: Iterable[Exchange]) -> tuple[float, ...]:
    near = sum(one.near_seconds for one in exchanges)
    return 0.0, 0.0, near, sum(one.far_seconds for one in exchanges)


def _wide(region: Region, accelerator: Accelerator) -> float:
    """Seconds of the products that are slower than products of bfloat16 numbers."""
    slow = 0.0
    for work in region.modules.values():
        for how, flops in work.products.items():
            if (times := slowdown(how, accelerator)) > 1:
                slow += flops * times
    return slow / accelerator.flops


def _sum(seconds: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    return tuple(map(sum, zip(NOTHING, *seconds, strict=True)))
