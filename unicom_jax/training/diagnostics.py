"""Norms of gradients, weights and updates, one for each group of weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax


def group_norms(
    trees: Mapping[str, Any], label: Callable[[tuple[str, ...]], str]
) -> dict[str, jax.Array]:
    """`<tree>/<group>`: Euclidean norm of the leaves of each tree whose path has that label.

    Args:
      trees: name -> nested dict of arrays.
      label: gives the group of a weight's path.
    """
    norms = {}
    for kind, tree in trees.items():
        members = defaultdict(list)
        for path, leaf in jax.tree.leaves_with_path(tree):
            members[label(tuple(key.key for key in path))].append(leaf)
        norms |= {f"{kind}/{group}": optax.tree.norm(some) for group, some in members.items()}
    return norms
