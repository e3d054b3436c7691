"""Small models of the foreign libraries with random weights: one per layout and kind."""

from __future__ import annotations

import functools

import pytest

from tests.models import flux_twin, mmdit_twin, qwen_vl_torch
from tests.models.torch_weights import randomise
from unicom_jax.interop.layouts.layout import LAYOUTS, Layout

TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
VISION = {"fixed": {"image_size": 8}, "naflex": {"num_patches": 16}}
LANGUAGE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
}
TEXT = {**TOWER, "vocab_size": 50, "max_position_embeddings": 16, "projection_size": 32}
AUTOENCODER = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
    "shift_factor": 0.25,
}
# name -> layout, what makes the foreign model
KINDS = {
    **{
        f"{kind}_{part}": ("siglip", functools.partial(lambda k, p: siglip(k, p), kind, part))
        for kind in VISION
        for part in ("vision", "text", "full")
    },
    **{
        f"{family}_{'tied' if tied else 'untied'}": (
            "qwen",
            functools.partial(lambda f, t: language(f, t), family.capitalize(), tied),
        )
        for family in ("qwen2", "qwen3")
        for tied in (True, False)
    },
    "qwen_vl_tied": ("qwen_vl", lambda: qwen_vl_torch.make(tied=True)),
    "qwen_vl_untied": ("qwen_vl", lambda: qwen_vl_torch.make(tied=False)),
    "autoencoder": ("autoencoder", lambda: autoencoder()),
    "flux": ("flux", lambda: flux_twin.twin_of(flux_twin.SMALL)),
    "sd3": ("sd3", lambda: mmdit_twin.twin_of(mmdit_twin.SMALL)),
}


def siglip(kind: str, part: str, **changes):
    """`changes` go to the tower that is asked for."""
    transformers = pytest.importorskip("transformers")
    family = "Siglip" if kind == "fixed" else "Siglip2"
    vision, text = {**TOWER, "patch_size": 2, **VISION[kind]}, dict(TEXT)
    if part == "full":
        config = getattr(transformers, f"{family}Config")(text_config=text, vision_config=vision)
        return getattr(transformers, f"{family}Model")(config)
    name = f"{family}{part.capitalize()}"
    sizes = {**(vision if part == "vision" else text), **changes}
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**sizes))


def language(family: str, tied: bool, **changes):
    transformers = pytest.importorskip("transformers")
    sizes = {**LANGUAGE, "tie_word_embeddings": tied, **changes}
    config = getattr(transformers, f"{family}Config")(**sizes)
    return getattr(transformers, f"{family}ForCausalLM")(config)


def autoencoder():
    return pytest.importorskip("diffusers").AutoencoderKL(**AUTOENCODER)


def make(name: str) -> tuple[Layout, object]:
    """The layout and a model whose every weight is random."""
    pytest.importorskip("torch")
    layout, maker = KINDS[name]
    model = maker().eval()
    randomise(model)
    return LAYOUTS[layout], model
