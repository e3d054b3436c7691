"""Device meshes from one line of text: `fsdp=-1,tensor=4`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

AXES = ("slice", "data", "fsdp", "context", "tensor")


def parse_mesh(text: str, devices: int) -> tuple[int, ...]:
    """Sizes of all `AXES` for a number of devices; -1 takes what is left.

    Raises:
      ValueError: an unknown or repeated axis, a size below 1 that is not -1, two -1, or sizes that
        do not multiply to `devices`.
    """
    sizes = dict.fromkeys(AXES, 1)
    given: set[str] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, size = part.partition("=")
        if name not in sizes:
            raise ValueError(f"mesh={text!r}: unknown axis {name!r}; axes are {', '.join(AXES)}")
        if name in given:
            raise ValueError(f"mesh={text!r}: axis {name!r} is given twice; keep one of them")
        given.add(name)
        if not size.strip().isdecimal() and size.strip() != "-1" or int(size) == 0:
            raise ValueError(f"mesh={text!r}: write {name}=N with a positive integer N or -1")
        sizes[name] = int(size)
    known = math.prod(size for size in sizes.values() if size != -1)
    open_axes = [name for name, size in sizes.items() if size == -1]
    if len(open_axes) > 1:
        raise ValueError(f"mesh={text!r}: only one axis may be -1, here {', '.join(open_axes)}")
    if open_axes:
        sizes[open_axes[0]] = devices // known
    if math.prod(sizes.values()) != devices:
        raise ValueError(
            f"mesh={text!r} asks for {math.prod(sizes.values())} devices but {devices} are here; "
            "change a size or let one axis be -1"
        )
    return tuple(sizes.values())


def make_mesh(text: str = "fsdp=-1", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with all `AXES` (most of size 1) over `devices`, by default all of them.

    Raises:
      ValueError: as `parse_mesh`, or a `context` axis: no computation is split along it yet.
    """
    devices = jax.devices() if devices is None else devices
    sizes = parse_mesh(text, len(devices))
    if sizes[AXES.index("context")] > 1:
        raise ValueError(
            f"mesh={text!r}: sequences are not split over devices yet; use fsdp or data instead"
        )
    types = (AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=types, devices=devices)
