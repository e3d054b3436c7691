"""Arrays that wait in the host's memory: each device's part beside it, on its own host."""

from __future__ import annotations

from typing import Any

import jax

HOST = "pinned_host"  # the memory kind


def on_host(shardings: Any, abstract: Any) -> Any:
    """The same shardings in the host's memory; scalars stay on the device, as steps branch on them.

    Args:
      abstract: the arrays that will be stored there.
    """
    return jax.tree.map(
        lambda place, leaf: place.with_memory_kind(HOST) if leaf.ndim else place,
        shardings,
        abstract,
    )


def on_device(tree: Any) -> Any:
    """Within a jitted function: copies of what is in the host's memory, sharded as it is."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, jax.memory.Space.Device), tree)
