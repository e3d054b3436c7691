"""Torch models' weights, or their gradients, as our trees, and how both are compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from unicom_jax.core.module import Module
from unicom_jax.interop.layouts.layout import Layout
from unicom_jax.interop.mapping import places

State = Mapping[str, np.ndarray]  # torch's names


def randomise(model, seed: int = 0, std: float = 0.2) -> None:
    """Fills every weight of a torch model, so that no bias and no gain is trivial.

    A deep model amplifies rounding errors less with a smaller `std`.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0.0, std, generator=generator)
            if weight.ndim == 1 and "norm" in name and name.endswith("weight"):
                weight.add_(1.0)


def state_of(model) -> State:
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def gradients_of(model) -> State:
    return {name: weight.grad.numpy() for name, weight in model.named_parameters()}


def tree_of(layout: Layout, module: Module, state: State) -> dict:
    """Torch's tensors, weights or gradients, as the tree of `module` by the layout's table."""
    weights: dict[str, Any] = {}
    for name, place in places(layout.table(module), module.specs()).items():
        for number, path in enumerate(place.rule.paths):
            whole = [slice(0, size) for size in place.layer_shape(number)]
            layer = place.read(path, whole, state[name].__getitem__)
            if place.layer is None:
                weights[path] = layer
            else:
                weights.setdefault(path, []).append(layer)
    return traverse_util.unflatten_dict(
        {path: np.stack(w) if isinstance(w, list) else w for path, w in weights.items()}, sep="/"
    )


def assert_close(ours, theirs, tolerance: float, what: str = "") -> None:
    """The largest difference is at most `tolerance` times the reference's largest value."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, (what, ours.shape, theirs.shape)
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    assert error <= tolerance, f"{what}: relative error {error:.2e} exceeds {tolerance:.0e}"


def assert_trees_close(ours: Mapping, theirs: Mapping, tolerance: float, floor: float) -> None:
    """`assert_close` leaf by leaf; leaves whose reference stays under `floor` must do so too.

    A key's bias has no effect on a softmax, so its gradient is rounding noise around zero.
    """
    assert set(ours) == set(theirs)
    for name, reference in theirs.items():
        if isinstance(reference, Mapping):
            assert_trees_close(ours[name], reference, tolerance, floor)
        elif np.abs(reference).max() < floor:
            assert np.abs(np.asarray(ours[name])).max() < floor, name
        else:
            assert_close(ours[name], reference, tolerance, name)
