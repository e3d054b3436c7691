"""The train state, and the split of weights into trained and frozen ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
from flax import traverse_util

from unicom_jax.core.module import Params


@flax.struct.dataclass
class TrainState:
    """Everything a step changes.

    Attributes:
      step: int32 scalar, steps taken, skipped ones included.
      params: all weights of the stage's module, frozen ones included.
      opt_state: state of the optimiser, for the trained weights only.
      ema: running average of the trained weights, or None.
      norms: the last gradient norms (`spikes.py`), or None.
      old: running average of the trained weights that `Stage.prepare` samples with, or None.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    ema: Any | None
    norms: jax.Array | None = None
    old: Any | None = None


def split(tree: Params, frozen: Sequence[str]) -> tuple[Params, Params]:
    """Splits a tree into (trained, frozen) by regular expressions over `a/b/c` paths.

    An expression freezes a weight if it matches the beginning of its path. Parts without weights
    (an identity compressor) stay in the first tree, so that `merge` restores all names.
    """
    patterns = [re.compile(pattern) for pattern in frozen]
    trained, held = {}, {}
    for path, leaf in traverse_util.flatten_dict(tree, keep_empty_nodes=True).items():
        is_frozen = any(pattern.match("/".join(path)) for pattern in patterns)
        (held if is_frozen else trained)[path] = leaf
    return traverse_util.unflatten_dict(trained), traverse_util.unflatten_dict(held)


def applied_updates(state: TrainState) -> jax.Array:
    """int32 scalar: the optimiser's own count of applied updates, without skipped steps.

    `opt_state` must be that of `optax.apply_if_finite`.
    """
    return state.step - state.opt_state.total_notfinite


def merge(*trees: Params) -> Params:
    """The inverse of `split`; later trees win."""
    flat: dict = {}
    for tree in trees:
        flat |= traverse_util.flatten_dict(tree, keep_empty_nodes=True)
    return traverse_util.unflatten_dict(flat)


def check_freeze(tree: Params, frozen: Sequence[str], key: str = "freeze") -> None:
    """Raises ValueError for an expression that matches nothing, such as a misspelt name.

    Args:
      key: the configuration key, for errors.
    """
    paths = ["/".join(path) for path in traverse_util.flatten_dict(tree)]
    for pattern in frozen:
        if not any(re.match(pattern, path) for path in paths):
            tops = ", ".join(sorted({"/".join(path.split("/")[:2]) for path in paths})[:12])
            raise ValueError(f"{key}={pattern!r} matches no weight; weights begin with {tops}")
