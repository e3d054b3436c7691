"""The least time a step can take, and what sets it.

Every loop of the program takes as long as its slowest part: products at the peak rate, main memory,
links within a domain, network between domains. The parts of one loop may overlap; loops follow each
other. So the step is bounded by the sum over loops of each one's slowest part ("overlapped"), and
by the sum of all parts if nothing overlaps ("in turn"). Real steps are between, or above where
products do not reach their peak.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from unicom_jax.parallel.plan.costs import Costs, Region
from unicom_jax.parallel.plan.traffic import Exchange, Fabric, price, total

TERMS = ("compute", "memory", "links", "network")


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
class Roofline:
    parts: tuple[Part, ...]
    exchanges: tuple[Exchange, ...]

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
        """How much of the overlapped step each term sets, in seconds."""
        shares = dict.fromkeys(TERMS, 0.0)
        for part in self.parts:
            shares[TERMS[part.seconds.index(part.slowest)]] += part.slowest
        return shares

    @property
    def binding(self) -> str:
        bound = self.bound
        return max(bound, key=bound.__getitem__)


def make_roofline(costs: Costs, fabric: Fabric) -> Roofline:
    """Without an accelerator whose peaks are known all seconds are 0; the bytes are there."""
    parts, exchanges = [], []
    for region in costs.regions:
        found = [one for collective in region.collectives for one in price(collective, fabric)]
        exchanges += found
        parts.append(_part(region, found, fabric))
    return Roofline(tuple(parts), tuple(total(exchanges)))


def _part(region: Region, exchanges: Sequence[Exchange], fabric: Fabric) -> Part:
    accelerator = fabric.topology.accelerator
    if accelerator is None:
        return Part(region.name, region.times, (0.0,) * len(TERMS))
    seconds = (
        region.flops / accelerator.flops,
        region.nbytes / accelerator.hbm,
        sum(one.near_seconds for one in exchanges),
        sum(one.far_seconds for one in exchanges),
    )
    return Part(region.name, region.times, seconds)
