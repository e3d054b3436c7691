"""What a compiled program sends between devices, read from its text."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict

# (result) kind(operands), attributes
_LINE = re.compile(
    r"= (?P<result>\([^)]*\)|\S+) "
    r"(?P<kind>all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)"
    r"\(.*?(?:replica_groups=(?P<groups>\S+)|$)"
)
_ARRAY = re.compile(r"[a-z]+(?P<bits>\d+)\w*\[(?P<shape>[\d,]*)\]")
# Bytes that a device gets from others for each byte of its result, in a group of n.
_RECEIVED = {
    "all-gather": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "reduce-scatter": lambda n: n - 1,
    "collective-permute": lambda n: 1,
}


@dataclasses.dataclass
class Traffic:
    """Collectives of one kind: how many there are, and the bytes that a device receives."""

    count: int = 0
    received: float = 0.0


def traffic(text: str) -> dict[str, Traffic]:
    """Collectives by kind in the text of a program compiled for CPU.

    Each counts once, also within a loop. XLA:CPU runs them in place; programs for TPU and GPU begin
    and end them in two instructions, which this does not read.
    """
    found: dict[str, Traffic] = defaultdict(Traffic)
    for line in text.splitlines():
        if match := _LINE.search(line):
            result = sum(
                int(array["bits"])
                / 8
                * math.prod(map(int, filter(None, array["shape"].split(","))))
                for array in _ARRAY.finditer(match["result"])
            )
            kind = match["kind"]
            found[kind].count += 1
            found[kind].received += result * _RECEIVED[kind](_group_size(match["groups"] or ""))
    return dict(found)


def _group_size(groups: str) -> int:
    """Of `{{0,1},{2,3}}` or `[2,2]<=[4]`: 2."""
    if groups.startswith("["):
        return int(groups[1 : groups.index("]")].split(",")[-1])
    return groups.removeprefix("{{").split("}")[0].count(",") + 1
