"""Device meshes from one line of text: `fsdp=-1,tensor=4`, or `auto`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from unicom_jax.parallel.accelerators import preset_mesh

AUTO = "auto"
AXES = ("slice", "data", "fsdp", "context", "tensor")


def parse_mesh(text: str, devices: int) -> tuple[int, ...]:
    """Sizes of all `AXES` for a number of devices; -1 takes the remaining ones.

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
            f"mesh={text!r} asks for {math.prod(sizes.values())} devices, but there are "
            f"{devices}; change a size or set one axis to -1"
        )
    return tuple(sizes.values())


def count_slices(devices: Sequence[jax.Device]) -> int:
    """Number of TPU slices, which only the data-center network connects; 1 on other platforms.

    JAX calls each GPU node a slice too, but GPU nodes are laid out by the order of processes.
    """
    # Devices that are only compiled for have no slice index if there is one slice.
    tpus = (device for device in devices if device.platform == "tpu")
    return len({getattr(device, "slice_index", 0) or 0 for device in tpus}) or 1


def arrange(text: str, devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices in the shape of the mesh; its later axes run along fast links.

    Raises:
      ValueError: as `parse_mesh`, or the size of the `slice` axis is not the number of slices.
    """
    slices = count_slices(devices)
    if text == AUTO:
        text = preset_mesh(devices[0].device_kind, len(devices), slices)
    sizes = parse_mesh(text, len(devices))
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if sizes[0] != slices:
        raise ValueError(
            f"mesh={text!r} has slice={sizes[0]}, but the devices are in {slices} slices; write "
            f"slice={slices}, so that only gradients cross between them"
        )
    within, between = (1, *sizes[1:]), (slices, *[1] * (len(sizes) - 1))
    return mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )


def make_mesh(text: str = "fsdp=-1", devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with all `AXES` (most of size 1) over `devices`, by default all that JAX has.

    Args:
      text: sizes as `parse_mesh` reads them, or "auto": the preset of the accelerator
        (`parallel/accelerators.py`).

    Raises:
      ValueError: as `arrange`.
    """
    arranged = arrange(text, jax.devices() if devices is None else devices)
    return Mesh(arranged, AXES, axis_types=(AxisType.Auto,) * len(AXES))
