"""Arrays that wait in the host's memory: each device's part beside it, on its own host.

Scalars stay on the device, as steps branch on them.
"""

from __future__ import annotations

from typing import Any

import jax


def on_host(shardings: Any, abstract: Any) -> Any:
    """The same shardings in the host's memory, for the arrays in `abstract`."""
    return jax.tree.map(
        lambda place, leaf: place.with_memory_kind("pinned_host") if leaf.ndim else place,
        shardings,
        abstract,
    )


def to_host(tree: Any) -> Any:
    """Within a jitted function: copies on the host, sharded alike."""
    return _move(tree, jax.memory.Space.Host)


def to_device(tree: Any) -> Any:
    """The inverse of `to_host`."""
    return _move(tree, jax.memory.Space.Device)


def _move(tree: Any, space: jax.memory.Space) -> Any:
    return jax.tree.map(lambda leaf: jax.device_put(leaf, space) if leaf.ndim else leaf, tree)
