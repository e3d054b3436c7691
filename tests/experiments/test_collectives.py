"""Bytes that a program sends are read from its text."""

from __future__ import annotations

import pytest

from experiments.benchmarks.collectives import traffic


@pytest.mark.parametrize(
    ("line", "kind", "received"),
    [
        (
            "%x = f32[8,4]{1,0} all-gather(%y), channel_id=1, replica_groups=[2,4]<=[8], dim",
            "all-gather",
            8 * 4 * 4 * 3 / 4,
        ),
        (
            "%x = (bf16[2,3]{1,0}, bf16[2,3]{1,0}) all-to-all(%y, %z), replica_groups={{0,1}}",
            "all-to-all",
            2 * 2 * 3 * 2 / 2,
        ),
        (
            "ROOT %x = f32[] all-reduce(%y), replica_groups={{0,1,2,3}}, to_apply=%add",
            "all-reduce",
            2 * 4 * 3 / 4,
        ),
        (
            "%x = s32[5]{0} reduce-scatter(%y), replica_groups={{0,1}}, dimensions={0}",
            "reduce-scatter",
            5 * 4,
        ),
        (
            "%x = f32[5]{0} collective-permute(%y), channel_id=1, source_target_pairs={{0,1}}",
            "collective-permute",
            5 * 4,
        ),
    ],
)
def test_a_collective_is_counted_with_what_a_device_receives(line, kind, received):
    found = traffic(f"  {line}\n  %other = f32[8]{{0}} add(%x, %x)\n")
    assert list(found) == [kind]
    assert (found[kind].count, found[kind].received) == (1, received)


def test_operands_that_are_collectives_are_not_counted_again():
    assert traffic("  %x = f32[8]{0} add(%all-gather.1, %all-reduce)") == {}
