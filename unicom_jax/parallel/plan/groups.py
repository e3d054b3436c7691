"""Which devices take part together in a collective, parsed from each form that XLA prints."""

from __future__ import annotations

import re

import numpy as np

_LISTS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=(?:mesh|@?\w+)\[([^\]]*)\](.*?)\{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")
_AXIS = re.compile(r"['\"]([\w.]+)['\"](?::\((\d+)\)(\d+))?")


def parse_groups(attributes: str, devices: int) -> np.ndarray:
    """(groups, members): numbers of devices in the order of the mesh.

    Three forms: lists `{{0,1},{2,3}}`; an arrangement `[2,2]<=[4]` with an optional transposition;
    a mesh with the axes along which a group runs, `mesh['a'=2,'b'=2] {'b'}`. Without groups, all
    devices form one.

    Raises:
      ValueError: the form is none of these.
    """
    if found := _LISTS.search(attributes):
        rows = [row.split(",") for row in re.findall(r"\{([\d,]+)\}", found[1])]
        return np.array(rows, int) if rows else np.arange(devices)[None]
    if found := _IOTA.search(attributes):
        numbers = np.arange(devices).reshape(_sizes(found[2]))
        if found[3]:
            numbers = numbers.transpose(_sizes(found[3]))
        return numbers.reshape(_sizes(found[1]))
    if found := _MESH.search(attributes):
        return _of_mesh(*found.groups())
    if "replica_groups" not in attributes:
        return np.arange(devices)[None]
    at = attributes.index("replica_groups")
    raise ValueError(f"replica groups of an unknown form: {attributes[at : at + 80]}")


def parse_pairs(attributes: str) -> np.ndarray:
    """(pairs, 2) source and target of a collective-permute."""
    found = _PAIRS.search(attributes)
    pairs = re.findall(r"\{(\d+),(\d+)\}", found[1]) if found else []
    return np.array(pairs, int).reshape(-1, 2)


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _of_mesh(axes: str, order: str, used: str) -> np.ndarray:
    sizes = {name: int(size) for name, size in re.findall(r"['\"]([\w.]+)['\"]=(\d+)", axes)}
    numbers = np.arange(int(np.prod(list(sizes.values()), dtype=int)))
    if found := re.search(r"device_ids=\(?\[([\d,]+)\](?:T\(([\d,]+)\))?", order):
        given = _sizes(found[1])  # the devices themselves, or their arrangement before a transpose
        listed = len(given) == numbers.size and found[2] is None
        numbers = np.array(given) if listed else numbers.reshape(given)
        numbers = numbers.transpose(_sizes(found[2])) if found[2] else numbers
    # An axis may be used in part: 'a':(2)4 is the factor of size 4 after a factor of size 2.
    wanted = {name: (before, size) for name, before, size in _AXIS.findall(used)}
    shape, inside = [], []
    for name, size in sizes.items():
        before, part = wanted.get(name, ("", ""))
        if name in wanted and part:
            before, part = int(before), int(part)
            inside.append(len(shape) + 1)
            shape += [before, part, size // (before * part)]
        else:
            if name in wanted:
                inside.append(len(shape))
            shape.append(size)
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    members = int(np.prod([shape[axis] for axis in inside], dtype=int))
    return numbers.reshape(shape).transpose(*outside, *inside).reshape(-1, members)
