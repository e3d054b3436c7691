"""diffusers' Stable Diffusion 3 in a small size, and its weights or gradients as trees of ours."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.models import torch_weights
from tests.models.torch_weights import State, randomise
from unicom_jax.core.module import Params
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.interop.layouts.mmdit import describe
from unicom_jax.models.mmdit import MMDiT

SMALL = MMDiT(
    latent_channels=3,
    patch=2,
    depth=4,
    dual_depth=2,
    heads=2,
    head_dim=8,
    context_dim=12,
    pooled_dim=6,
    position_side=7,
    sample_size=8,
)
# SD3.5 medium, large, SD3 medium, and a model that is its last block alone.
VARIANTS = {
    "dual": SMALL,
    "joint": dataclasses.replace(SMALL, dual_depth=0),
    "unnormed": dataclasses.replace(SMALL, dual_depth=0, qk_norm=False),
    "dual-unnormed": dataclasses.replace(SMALL, depth=2, dual_depth=1, qk_norm=False),
    "last": dataclasses.replace(SMALL, depth=1, dual_depth=0),
}


def twin_of(module: MMDiT):
    """diffusers' model of these sizes, with weights and a table of places that are not trivial."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    sizes = {key: value for key, value in describe(module).items() if not key.startswith("_")}
    twin = diffusers.SD3Transformer2DModel(**sizes)
    randomise(twin, std=0.1)
    with torch.no_grad():
        twin.pos_embed.pos_embed.normal_(generator=torch.Generator().manual_seed(1))
    return twin


def state_of(twin) -> State:
    """All weights of `twin`, and its table of places, which is no parameter there."""
    return {name: weight.detach().numpy() for name, weight in twin.state_dict().items()}


def gradients_of(twin) -> State:
    """Gradients of all weights; 0 for the table of places and where nothing depends on a weight."""
    found = {name: np.zeros(weight.shape) for name, weight in twin.state_dict().items()}
    with_gradient = (pair for pair in twin.named_parameters() if pair[1].grad is not None)
    return found | {name: weight.grad.numpy() for name, weight in with_gradient}


def tree_of(module: MMDiT, state: State) -> Params:
    """A tree like the weights of `module` from tensors by diffusers' names."""
    return torch_weights.tree_of(LAYOUTS["sd3"], module, state)
