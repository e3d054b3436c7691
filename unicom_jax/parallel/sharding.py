"""Placement is one table: logical axis -> mesh axis. All placing of arrays goes through here."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from unicom_jax.core.module import ParamSpec, Specs, map_specs

RULES: dict[str | None, str | None] = {
    "embed": "fsdp",
    "features": None,
    "latent": None,
    "mlp": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "head_dim": None,
    "vocab": "tensor",
    "layers": None,
    None: None,
}
BATCH_AXES = ("slice", "data", "fsdp")


def param_sharding(spec: ParamSpec, mesh: Mesh) -> NamedSharding:
    """The sharding of one weight. A dimension that its mesh axis does not divide stays whole.

    Raises:
      ValueError: a logical axis without a rule.
    """
    placed: list[str | None] = []
    for size, logical in zip(spec.shape, spec.axes, strict=True):
        if logical not in RULES:
            raise ValueError(
                f"logical axis {logical!r} has no rule; add it to parallel.sharding.RULES"
            )
        axis = RULES[logical]
        usable = axis is not None and axis not in placed and size % mesh.shape[axis] == 0
        placed.append(axis if usable else None)
    return NamedSharding(mesh, PartitionSpec(*placed))


def param_shardings(specs: Specs, mesh: Mesh) -> Any:
    """A tree of shardings for a tree of specs."""
    return map_specs(lambda spec: param_sharding(spec, mesh), specs)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def optimizer_shardings(abstract_state: Any, shardings: Any, mesh: Mesh) -> Any:
    """Moments lie where their weights lie; everything else is replicated.

    Optax keeps moments in copies of the weights' tree, whatever surrounds them, so a moment is
    known by the end of its path.
    """
    weights = traverse_util.flatten_dict(shardings)

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        names = tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
        tails = (names[start:] for start in range(len(names)))
        tail = next((tail for tail in tails if tail in weights), None)
        return replicated(mesh) if tail is None or leaf.ndim == 0 else weights[tail]

    return jax.tree_util.tree_map_with_path(place, abstract_state)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch over all data-parallel axes."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def place_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts a host batch (this process's rows) on the devices as global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )
