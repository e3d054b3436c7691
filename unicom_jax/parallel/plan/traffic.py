"""What an exchange between devices moves over which links, and the least time that takes.

A group of n devices spans s domains (slices of TPUs, nodes of GPUs), with m devices in each. V is
the total size of what is gathered, reduced or exchanged. Bytes that one device receives:

                       within a domain (ICI, NVLink)     between domains (DCN, InfiniBand)
    all-gather         V (m - 1) / m                     V / m (s - 1) / s
    reduce-scatter     the same                          the same
    all-reduce         twice that                        twice that
    all-to-all         V (m - 1) / n                     V (s - 1) / s
    permute            V, within or between

The devices of a domain share the traffic between domains, each with its part of V. On a torus a
group uses the links of all axes along which it extends, in both directions if an axis closes to a
ring (Chan et al. 2007; "How to Scale Your Model", jax-ml.github.io/scaling-book, has the same
model).
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

from unicom_jax.parallel.plan.costs import Collective
from unicom_jax.parallel.plan.groups import parse_groups, parse_pairs
from unicom_jax.parallel.plan.topology import Topology, coordinates


@dataclasses.dataclass(frozen=True)
class Fabric:
    """Devices in the order of a mesh, and the links between them.

    Attributes:
      axes: names and sizes of the mesh's axes.
      places: (devices, 1 + axes): each device's domain and its place in it.
      weights: sizes in elements of weights when whole, sharded, or gathered over some axes.
    """

    topology: Topology
    axes: dict[str, int]
    places: np.ndarray
    weights: frozenset[int] = frozenset()

    @property
    def devices(self) -> int:
        return len(self.places)


def fabric_of(topology: Topology, mesh: Mesh, weights: Iterable[int] = ()) -> Fabric:
    places = coordinates(topology, list(mesh.devices.flat))
    return Fabric(topology, dict(mesh.shape), places, frozenset(weights))


@dataclasses.dataclass(frozen=True)
class Exchange:
    """What one kind of exchange costs a device in a step.

    Attributes:
      axes: the mesh axes along which it runs.
      what: "weights" (gradients too) or "activations".
      count: how often it runs.
      near, far: bytes received within and between domains.
      near_seconds, far_seconds: the least seconds these take; 0 if no rates are known.
    """

    kind: str
    axes: tuple[str, ...]
    what: str
    count: int
    near: float
    far: float
    near_seconds: float
    far_seconds: float


def price(collective: Collective, fabric: Fabric) -> list[Exchange]:
    """Its exchanges, weights separate from other arrays; [] if a group is one device."""
    kind, members = collective.kind, _members(collective, fabric)
    if len(members) < 2:
        return []
    axes = _axes(members, fabric)
    exchanges = []
    for what in ("weights", "activations"):
        arrays = [
            array
            for array in collective.arrays
            if (what == "weights") == _is_weight(array.size, kind, len(members), fabric.weights)
        ]
        if arrays:
            whole = sum(array.nbytes for array in arrays)
            whole *= len(members) if kind == "all-gather" else 1
            domains = len(set(fabric.places[members, 0].tolist()))
            near, far = received(kind, whole, len(members), domains)
            times = collective.times
            near_seconds, far_seconds = _seconds(kind, near, far, members, fabric)
            exchanges.append(
                Exchange(
                    kind,
                    axes,
                    what,
                    times,
                    near * times,
                    far * times,
                    near_seconds * times,
                    far_seconds * times,
                )  # fmt: skip
            )
    return exchanges


def total(exchanges: Iterable[Exchange]) -> list[Exchange]:
    """Adds up exchanges of equal kind, axes and content; the longest come first."""
    sums: dict[tuple, Exchange] = {}
    for one in exchanges:
        key = (one.kind, one.axes, one.what)
        before = sums.get(key)
        sums[key] = one if before is None else _add(before, one)
    return sorted(sums.values(), key=lambda one: -max(one.near_seconds + one.far_seconds, 0))


def _add(one: Exchange, other: Exchange) -> Exchange:
    names = ("count", "near", "far", "near_seconds", "far_seconds")
    return dataclasses.replace(
        one, **{name: getattr(one, name) + getattr(other, name) for name in names}
    )


def _members(collective: Collective, fabric: Fabric) -> np.ndarray:
    """The devices of one group; groups of one exchange are alike."""
    if collective.kind == "collective-permute":
        pairs = parse_pairs(collective.attributes)
        moved = pairs[pairs[:, 0] != pairs[:, 1]]
        return moved[0] if len(moved) else np.arange(1)
    if target := re.search(r'megascale_target="\{([\d,]+)\}x', collective.attributes):
        # Slices communicate through their hosts: the same device of each slice.
        slices = len(target[1].split(","))
        return np.arange(slices) * (fabric.devices // slices)
    return parse_groups(collective.attributes, fabric.devices)[0]


def _axes(members: np.ndarray, fabric: Fabric) -> tuple[str, ...]:
    places = np.unravel_index(members, tuple(fabric.axes.values()))
    return tuple(
        name for name, at in zip(fabric.axes, places, strict=True) if len(set(at.tolist())) > 1
    )


def _is_weight(size: int, kind: str, members: int, weights: frozenset[int]) -> bool:
    return size * (members if kind == "all-gather" else 1) in weights


def received(kind: str, whole: float, count: int, domains: int) -> tuple[float, float]:
    """Bytes within and between domains for a group of `count` devices in `domains` domains."""
    each = count / domains
    if kind == "collective-permute":
        return (0.0, whole) if domains > 1 else (whole, 0.0)
    if kind == "all-to-all":
        return whole * (each - 1) / count, whole * (domains - 1) / domains
    passes = 2 if kind == "all-reduce" else 1
    near = passes * whole * (each - 1) / each
    return near, passes * whole / each * (domains - 1) / domains


def _seconds(
    kind: str, near: float, far: float, members: np.ndarray, fabric: Fabric
) -> tuple[float, float]:
    accelerator = fabric.topology.accelerator
    if accelerator is None:
        return 0.0, 0.0
    far_seconds = far / accelerator.network
    if not near:
        return 0.0, far_seconds
    if not accelerator.torus or kind == "collective-permute":
        return near / accelerator.link, far_seconds
    rates = _torus_rates(members, fabric)
    if kind == "all-to-all":
        # A byte travels a quarter of each ring, a third of each line, on average.
        sizes = [size for size, rate in rates]
        hops = max(size / (4 if rate > accelerator.link else 3) for size, rate in rates)
        share = math.prod(sizes) / max(math.prod(sizes) - 1, 1)
        return near * share * hops / max(rate for _, rate in rates), far_seconds
    return near / sum(rate for _, rate in rates), far_seconds


def _torus_rates(members: np.ndarray, fabric: Fabric) -> list[tuple[int, float]]:
    """(devices, bytes/s) for each torus axis along which the group extends."""
    accelerator, shape = fabric.topology.accelerator, fabric.topology.shape
    first = fabric.places[members[0], 0]
    inside = [member for member in members if fabric.places[member, 0] == first]
    rates = []
    for axis, length in enumerate(shape):
        at = sorted(set(fabric.places[inside, 1 + axis].tolist()))
        if len(at) < 2:
            continue
        closed = length >= accelerator.wrap
        stride = length / len(at) if closed else (at[-1] - at[0]) / (len(at) - 1)
        whole = len(at) == length or stride > 1
        # Groups that interleave share the links between their members.
        rates.append((len(at), accelerator.link * (2 if closed and whole else 1) / max(stride, 1)))
    # Two devices of one chip communicate inside it, faster than over all of its links.
    return rates or [(2, accelerator.link * 2 * len(shape))]
