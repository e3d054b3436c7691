"""Arrays that are kept in host memory: each device's part on that device's host."""

from __future__ import annotations

from typing import Any

import jax

HOST = "pinned_host"  # the memory kind


def on_host(shardings: Any, abstract: Any) -> Any:
    """The same shardings in host memory; scalars stay on the device, as steps branch on them.

    Args:
      abstract: the arrays that will be stored there.
    """
    return jax.tree.map(
        lambda place, leaf: place.with_memory_kind(HOST) if leaf.ndim else place,
        shardings,
        abstract,
    )


def on_device(tree: Any) -> Any:
    """Within a jitted function: copies of arrays in host memory, with the same sharding."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, jax.memory.Space.Device), tree)
