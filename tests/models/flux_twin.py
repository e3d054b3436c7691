"""diffusers' FLUX transformer in a small size, and its weights or gradients as trees of ours."""

from __future__ import annotations

import pytest

from tests.models import torch_weights
from tests.models.torch_weights import State, randomise
from unicom_jax.core.module import Params
from unicom_jax.interop.layouts.flux import describe
from unicom_jax.interop.layouts.layout import LAYOUTS
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


def tree_of(module: FluxTransformer, state: State) -> Params:
    """A tree like the weights of `module` from tensors by diffusers' names."""
    return torch_weights.tree_of(LAYOUTS["flux"], module, state)
