"""Torch modules whose weights have the names of our trees: weights in, gradients out."""

from __future__ import annotations

import numpy as np
import torch
from flax import traverse_util
from torch import nn

from unicom_jax.core.module import Params

LAYERS = "blocks"  # our trees stack their weights, torch has one module each


def _name(path: str) -> str:
    return path.replace("/kernel", "/weight").replace("/scale", "/weight").replace("/", ".")


def _theirs(path: str, value: np.ndarray) -> np.ndarray:
    if not path.endswith("kernel"):
        return value
    return value.T if value.ndim == 2 else value.transpose(3, 2, 0, 1)


def _ours(path: str, value: np.ndarray) -> np.ndarray:
    if not path.endswith("kernel"):
        return value
    return value.T if value.ndim == 2 else value.transpose(2, 3, 1, 0)


def _places(path: str, count: int) -> list[str]:
    """Torch's names of a leaf: one, or one a layer where our tree stacks layers."""
    before, layers, after = f"/{path}".partition(f"/{LAYERS}/")
    if not layers:
        return [_name(path)]
    return [_name(f"{before}/{LAYERS}/{i}/{after}"[1:]) for i in range(count)]


def load(model: nn.Module, params: Params) -> nn.Module:
    """The model with our weights; each of its own has to be there."""
    state = {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        value = np.asarray(leaf)
        names = _places(path, len(value) if value.ndim else 0)
        stacked = f"/{LAYERS}/" in f"/{path}"
        for i, name in enumerate(names):
            layer = np.ascontiguousarray(_theirs(path, value[i] if stacked else value))
            state[name] = torch.from_numpy(layer.copy())
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    model.load_state_dict({name: state[name] for name in own})
    return model


def gradients(model: nn.Module, params: Params) -> dict[str, np.ndarray]:
    """{our path: gradient} of the leaves of `params` that the model has."""
    grads = {n: p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    found = {}
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        names = _places(path, len(leaf) if leaf.ndim else 0)
        if all(name in grads for name in names):
            layers = [_ours(path, grads[name]) for name in names]
            found[path] = np.stack(layers) if f"/{LAYERS}/" in f"/{path}" else layers[0]
    return found
