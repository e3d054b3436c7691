"""diffusers' FLUX transformer in a small size, and its weights or gradients as trees of ours."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from flax import traverse_util

from tests.models.siglip_weights import randomise
from unicom_jax.core.module import Params
from unicom_jax.interop.layouts.flux import describe, table
from unicom_jax.interop.mapping import places
from unicom_jax.models.flux import FluxTransformer

SMALL = FluxTransformer(
    channels=8,
    out_channels=8,
    double_depth=2,
    single_depth=3,
    heads=2,
    head_dim=16,
    context_dim=24,
    pooled_dim=12,
    rope_dims=(4, 6, 6),
)


def twin_of(module: FluxTransformer):
    """diffusers' model of these sizes, with weights none of which is trivial."""
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    sizes = {key: value for key, value in describe(module).items() if not key.startswith("_")}
    twin = diffusers.FluxTransformer2DModel(**sizes)
    randomise(twin)
    return twin


def tree_of(module: FluxTransformer, state: Mapping[str, np.ndarray]) -> Params:
    """A tree like the weights of `module` from tensors by diffusers' names."""
    weights: dict[str, np.ndarray] = {}
    for path, leaf in traverse_util.flatten_dict(module.abstract(), sep="/").items():
        weights[path] = np.empty(leaf.shape, leaf.dtype)
    for name, place in places(table(module), module.specs()).items():
        for path, part in place.split(state[name]):
            weights[path][... if place.layer is None else place.layer] = part
    return traverse_util.unflatten_dict(weights, sep="/")
