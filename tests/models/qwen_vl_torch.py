"""A small Qwen2.5-VL of transformers with random weights, its twin, and inputs for both."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.models.torch_weights import randomise, tree_of
from unicom_jax.interop.layouts.layout import LAYOUTS

LAYOUT = LAYOUTS["qwen_vl"]
PICTURE = 45  # the token of pictures
# Windows of 2 x 2 vectors; the layer in the middle sees whole pictures.
VISION = {
    "depth": 3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_heads": 2,
    "patch_size": 2,
    "window_size": 8,
    "out_hidden_size": 32,
    "fullatt_block_indexes": [1],
}
TEXT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-6,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
}


def config_of(text=TEXT, vision=VISION, tied: bool = True, picture: int = PICTURE):
    transformers = pytest.importorskip("transformers")
    return transformers.Qwen2_5_VLConfig(
        text_config=dict(text),
        vision_config=dict(vision),
        tie_word_embeddings=tied,
        image_token_id=picture,
    )


def make(tied: bool = True):
    """The model in torch, every weight random."""
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.Qwen2_5_VLForConditionalGeneration(config_of(tied=tied)).eval()
    randomise(model)
    return model


def released(state: dict) -> dict:
    """Tensors by their released names."""
    return {LAYOUT.new_name(name): tensor for name, tensor in state.items()}


@cache
def twins():
    """The model in torch, ours, and our weights."""
    reference = make()
    module = LAYOUT.module_of(reference.config.to_dict(), "config.json")
    state = {name: weight.detach().numpy() for name, weight in reference.named_parameters()}
    return reference, module, tree_of(LAYOUT, module, released(state))


def drawn(grids: list[tuple[int, int]], slots: int, seed: int = 0) -> np.ndarray:
    """Patches of random pictures, and random padding."""
    draw = np.random.default_rng(seed).standard_normal
    return draw((len(grids), slots, 3 * 2 * 2 * 2)).astype(np.float32)


def joined(patches: np.ndarray, grids: list[tuple[int, int]]) -> tuple:
    """Patches and grids as transformers takes them: without padding, one after the other."""
    torch = pytest.importorskip("torch")
    parts = [one[: rows * cols] for one, (rows, cols) in zip(patches, grids, strict=True)]
    shown = torch.tensor([(1, *grid) for grid in grids if all(grid)])
    return torch.from_numpy(np.concatenate(parts)), shown
