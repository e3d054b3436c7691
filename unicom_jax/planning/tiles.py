"""Whether shards of weights fill whole tiles of a TPU.

A TPU lays arrays out in tiles; one of bfloat16 has 16 rows, one of fp32 eight. If the shard of a
gradient does not consist of whole tiles, XLA does not reduce-scatter the gradient but all-reduces
it, which moves twice the bytes, and each device keeps its part. This happens for 3584 channels over
fsdp=64 (56 per device), but not over fsdp=32 (112 per device), according to `unicom plan` of
experiments/unicom_7b.py for v5p:4x4x8.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

from jax.sharding import AbstractMesh, Mesh

from unicom_jax.core.activations import EMBED
from unicom_jax.core.module import ParamSpec
from unicom_jax.parallel.sharding import param_sharding

ROWS = {2: 16, 4: 8}  # bytes of a number: rows of a tile
FEW = 0.1  # a share of trained weights that is not worth a warning


def shard_of(spec: ParamSpec, mesh: Mesh | AbstractMesh) -> tuple[int, int]:
    """Sizes of a weight's dimension split over `EMBED` and of a device's part; (0, 0) if none."""
    for size, axes in zip(spec.shape, param_sharding(spec, mesh).spec, strict=False):
        names = (axes,) if isinstance(axes, str) else axes or ()
        if names and set(names) <= set(EMBED):
            return size, size // math.prod(mesh.shape[name] for name in names)
    return 0, 0


def is_broken(spec: ParamSpec, mesh: Mesh | AbstractMesh, nbytes: int) -> bool:
    """Whether the shards of a matrix's gradient, with numbers of `nbytes`, are not whole tiles."""
    return len(spec.shape) > 1 and shard_of(spec, mesh)[1] % ROWS[nbytes] > 0


def tile_warning(specs: Iterable[ParamSpec], mesh: Mesh | AbstractMesh, nbytes: int) -> str:
    """A line about the gradients that `is_broken` finds, with a size that fits; "" for few."""
    found: Counter[tuple[int, int]] = Counter()
    everything = 0
    for spec in specs:
        everything += spec.size
        if is_broken(spec, mesh, nbytes):
            found[shard_of(spec, mesh)] += spec.size
    if found.total() < FEW * everything or not found:
        return ""
    (size, part), weights = found.most_common(1)[0]
    over, rows = size // part, ROWS[nbytes]
    fitting = [n for n in range(2, over) if over % n == 0 and size % (n * rows) == 0]
    hint = f"; over {fitting[-1]} devices they would have {size // fitting[-1]}" if fitting else ""
    return (
        f"gradients of {size} channels over {over} devices are in shards of {part} rows, not a "
        f"multiple of a tile's {rows}: a TPU all-reduces them ({weights:.2g} weights), twice the "
        f"bytes of a reduce-scatter{hint}"
    )
