"""transformers' SigLIP weights, or their gradients, as the trees of our towers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from unicom_jax.models.contrastive import Contrastive
from unicom_jax.models.text_encoder import TextEncoder
from unicom_jax.models.vision_encoder import VisionEncoder

State = Mapping[str, np.ndarray]  # torch's names

# ours -> torch's, inside one block
LINEARS = {
    ("attention", "query"): "self_attn.q_proj",
    ("attention", "key"): "self_attn.k_proj",
    ("attention", "value"): "self_attn.v_proj",
    ("attention", "out"): "self_attn.out_proj",
    ("mlp", "up"): "mlp.fc1",
    ("mlp", "down"): "mlp.fc2",
}


def randomise(model, seed: int = 0) -> None:
    """Fills every weight of a torch model, so that no bias and no gain is trivial."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(0.0, 0.2, generator=generator)
            if weight.ndim == 1 and "norm" in name and name.endswith("weight"):
                weight.add_(1.0)


def state_of(model) -> State:
    return {name: weight.detach().numpy() for name, weight in model.named_parameters()}


def gradients_of(model) -> State:
    return {name: weight.grad.numpy() for name, weight in model.named_parameters()}


def _linear(state: State, name: str) -> dict:
    return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}


def _norm(state: State, name: str) -> dict:
    return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}


def _block(state: State, name: str) -> dict:
    tree = {"attention": {}, "mlp": {}}
    for (part, ours), theirs in LINEARS.items():
        tree[part][ours] = _linear(state, f"{name}.{theirs}")
    tree["attention_norm"] = _norm(state, f"{name}.layer_norm1")
    tree["mlp_norm"] = _norm(state, f"{name}.layer_norm2")
    return tree


def _stack(trees: list) -> dict:
    if isinstance(trees[0], dict):
        return {name: _stack([tree[name] for tree in trees]) for name in trees[0]}
    return np.stack(trees)


def _pool(state: State, name: str) -> dict:
    kernels = np.split(state[f"{name}.attention.in_proj_weight"], 3)
    biases = np.split(state[f"{name}.attention.in_proj_bias"], 3)
    inward = zip(("query", "key", "value"), kernels, biases, strict=True)
    return {
        "probe": state[f"{name}.probe"][0, 0],
        "attention": {
            **{ours: {"kernel": kernel.T, "bias": bias} for ours, kernel, bias in inward},
            "out": _linear(state, f"{name}.attention.out_proj"),
        },
        "norm": _norm(state, f"{name}.layernorm"),
        "mlp": {
            "up": _linear(state, f"{name}.mlp.fc1"),
            "down": _linear(state, f"{name}.mlp.fc2"),
        },
    }


def vision_params(state: State, encoder: VisionEncoder, prefix: str = "") -> dict:
    patch = state[f"{prefix}embeddings.patch_embedding.weight"]
    if patch.ndim == 4:  # a convolution (out, channel, row, column)
        patch = patch.transpose(0, 2, 3, 1).reshape(encoder.width, encoder.patch_dim)
    positions = state[f"{prefix}embeddings.position_embedding.weight"]
    layers = [f"{prefix}encoder.layers.{i}" for i in range(encoder.depth)]
    return {
        "embedding": {
            "kernel": patch.T,
            "bias": state[f"{prefix}embeddings.patch_embedding.bias"],
        },
        "positions": positions.reshape(encoder.position_rows, encoder.position_cols, -1),
        "blocks": _stack([_block(state, name) for name in layers]),
        "norm": _norm(state, f"{prefix}post_layernorm"),
        "head": _pool(state, f"{prefix}head"),
    }


def text_params(state: State, encoder: TextEncoder, prefix: str = "") -> dict:
    layers = [f"{prefix}encoder.layers.{i}" for i in range(encoder.depth)]
    return {
        "embedding": {"table": state[f"{prefix}embeddings.token_embedding.weight"]},
        "positions": state[f"{prefix}embeddings.position_embedding.weight"],
        "blocks": _stack([_block(state, name) for name in layers]),
        "norm": _norm(state, f"{prefix}final_layer_norm"),
        "head": _linear(state, f"{prefix}head"),
    }


def contrastive_params(state: State, model: Contrastive) -> dict:
    return {
        "vision": vision_params(state, model.vision, "vision_model."),
        "text": text_params(state, model.text, "text_model."),
        "logit_scale": state["logit_scale"][0],
        "logit_bias": state["logit_bias"][0],
    }


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
