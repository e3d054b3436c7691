"""Bytes over links and network, and the least time they take, against hand counts."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from unicom_jax.parallel.accelerators import ACCELERATORS
from unicom_jax.parallel.plan.arithmetic import Arithmetic
from unicom_jax.parallel.plan.costs import Collective, Costs, Region, Work
from unicom_jax.parallel.plan.hlo import Array
from unicom_jax.parallel.plan.roofline import make_roofline
from unicom_jax.parallel.plan.topology import missing_compiler, parse_topology
from unicom_jax.parallel.plan.traffic import Fabric, price, total

GPUS = 16  # two nodes of eight
V5P = next(entry for entry in ACCELERATORS if entry.name == "v5p")
H100 = next(entry for entry in ACCELERATORS if entry.name == "h100")


def nodes(weights=()):
    places = np.array([divmod(gpu, 8) for gpu in range(GPUS)])
    return Fabric(parse_topology("h100:16"), {"data": 2, "fsdp": 8}, places, frozenset(weights))


def torus(slices=1):
    """4 x 4 x 4 chips in the order of their coordinates, along two axes of a mesh."""
    chips = [
        (s, x, y, z) for s in range(slices) for x in range(4) for y in range(4) for z in range(4)
    ]
    axes = {"slice": slices, "fsdp": 16, "tensor": 4}
    return Fabric(parse_topology("v5p:4x4x4", slices), axes, np.array(chips))


def collective(kind, elements, groups, times=1, chain=""):
    return Collective(kind, (Array("f32", (elements,)),), groups, times, chain, "")


ALL, WITHIN, BETWEEN = "[1,16]<=[16]", "[2,8]<=[16]", "[8,2]<=[2,8]T(1,0)"


@pytest.mark.parametrize(
    ("kind", "groups", "near", "far"),
    [
        ("all-gather", WITHIN, 8 * 7 / 8, 0),
        ("all-gather", BETWEEN, 0, 2 * 1 / 2),
        ("all-gather", ALL, 16 * 7 / 8, 16 / 8 * 1 / 2),
        ("reduce-scatter", ALL, 7 / 8, 1 / 8 * 1 / 2),
        ("all-reduce", ALL, 2 * 7 / 8, 2 * 1 / 8 * 1 / 2),
        ("all-to-all", ALL, 7 / 16, 1 / 2),
    ],
)
def test_bytes_that_a_device_receives(kind, groups, near, far):
    (found,) = price(collective(kind, 1000, f"replica_groups={groups}", times=3), nodes())
    assert (found.near, found.far) == pytest.approx((near * 12_000, far * 12_000))
    assert found.near_seconds == pytest.approx(found.near / H100.link)
    assert found.far_seconds == pytest.approx(found.far / H100.network)
    assert found.count == 3


def test_a_permute_moves_its_array_once():
    near, far = (
        price(collective("collective-permute", 10, f"source_target_pairs={{{pair}}}"), nodes())[0]
        for pair in ("{0,0},{1,2}", "{0,8}")
    )
    assert (near.near, near.far, far.near, far.far) == (40, 0, 0, 40)


def test_an_exchange_names_its_mesh_axes_and_knows_weights_by_their_size():
    arrays = (Array("f32", (5, 10)), Array("bf16", (30,)))
    mixed = Collective("all-gather", arrays, f"replica_groups={WITHIN}", 1, "", "")
    weights, activations = price(mixed, nodes(weights=[8 * 50]))
    assert (weights.what, activations.what) == ("weights", "activations")
    assert weights.axes == activations.axes == ("fsdp",)
    assert (weights.near, activations.near) == (200 * 7, 60 * 7)


def test_a_group_of_one_device_exchanges_nothing():
    assert price(collective("all-reduce", 10, "replica_groups=[16,1]<=[16]"), nodes()) == []


def test_alike_exchanges_are_added_up():
    one = price(collective("all-gather", 10, f"replica_groups={WITHIN}"), nodes())
    (both,) = total([*one, *one])
    assert (both.count, both.near) == (2, 2 * one[0].near)


@pytest.mark.parametrize(
    ("groups", "rings"), [("[16,4]<=[64]", 1), ("[4,16]<=[16,4]T(1,0)", 2), ("[1,64]<=[64]", 3)]
)
def test_a_group_uses_the_rings_of_all_torus_axes_on_which_it_extends(groups, rings):
    (found,) = price(collective("all-gather", 1000, f"replica_groups={groups}"), torus())
    assert found.near_seconds == pytest.approx(found.near / (2 * rings * V5P.link))


def test_what_goes_between_slices_goes_over_the_network():
    target = '_xla_megascale_target="{1,2}x{0:63}"'
    (found,) = price(collective("all-reduce", 100, target), torus(slices=2))
    assert (found.axes, found.near, found.far) == (("slice",), 0, 400)
    assert found.far_seconds == 400 / V5P.network


# ---- roofline ---------------------------------------------------------------------------------


def products(seconds, how=Arithmetic()):  # noqa: B008 - a tuple of constants
    """As many as a v5p computes in that time where both factors are bfloat16."""
    return Counter({how: seconds * V5P.flops})


def test_a_loop_takes_as_long_as_its_slowest_part_and_loops_add_up():
    gather = collective("all-gather", 10**6, "replica_groups=[1,64]<=[64]")
    regions = (
        Region("products", 1, {"": Work(products(2), V5P.hbm)}, [gather]),
        Region("copies", 1, {"": Work(products(1), 3 * V5P.hbm)}),
    )
    roofline = make_roofline(Costs(regions, 0), torus())
    link = roofline.exchanges[0].near_seconds
    assert roofline.overlapped == pytest.approx(2 + 3)
    assert roofline.in_turn == pytest.approx(2 + 1 + link + 1 + 3)
    assert roofline.binding == "memory" and roofline.bound["compute"] == 2
    assert roofline.terms == pytest.approx({"compute": 3, "memory": 4, "links": link, "network": 0})


# ---- topologies -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "slices", "devices"),
    [
        ("v5p:8x8x4", 1, 256),
        ("v6e:16x16", 2, 512),
        ("tpu7x:2x2x1", 1, 8),  # two devices a chip
        ("h100:128", 1, 128),
        ("h100:4", 1, 4),
        ("cpu:8", 1, 8),
    ],
)
def test_a_topology_has_its_devices(text, slices, devices):
    assert parse_topology(text, slices).devices == devices


@pytest.mark.parametrize(
    ("text", "slices", "message"),
    [
        ("v9:4x4", 1, "'v9' is not one of v4, v5e, v5p"),
        ("v5p", 1, "write its size after the kind, for example v5p:8x8x4"),
        ("h100:", 1, "write its size after the kind, for example h100:128"),
        ("v5p:16x16", 1, "torus of 3 axes; write v5p:NxMxK in chips"),
        ("v6e:0x2", 1, "write its size"),
        ("v6e:4x4", 0, "--slices=0: give a positive number"),
        ("h100:8x8", 1, "only TPUs have a shape"),
        ("h100:16", 2, "--slices=2 is for TPUs"),
        ("h100:12", 1, "12 GPUs do not fill whole nodes of 8"),
    ],
)
def test_a_topology_that_cannot_be_is_refused_in_one_line(text, slices, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_topology(text, slices)
    assert "\n" not in str(caught.value)


def test_a_cpu_needs_no_compiler_but_its_own():
    assert missing_compiler(parse_topology("cpu:8")) == ""
