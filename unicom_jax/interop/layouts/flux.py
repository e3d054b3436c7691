"""FLUX.1's transformer as diffusers lays it out (`FluxTransformer2DModel`).

FOLDER/config.json, diffusion_pytorch_model.safetensors or its shards
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicom_jax.interop.layouts.streams import EMBEDDINGS, OUTPUT, block, linears, scales
from unicom_jax.interop.mapping import Rule, Table
from unicom_jax.interop.tensors import WeightsError
from unicom_jax.models.flux import FluxTransformer

STEM = "diffusion_pytorch_model"
CLASS = "FluxTransformer2DModel"

# Fields of FluxTransformer: the key of diffusers' config.json, and its default there.
FIELDS = {
    "channels": ("in_channels", 64),
    "out_channels": ("out_channels", None),  # None: as many as in the input
    "double_depth": ("num_layers", 19),
    "single_depth": ("num_single_layers", 38),
    "heads": ("num_attention_heads", 24),
    "head_dim": ("attention_head_dim", 128),
    "context_dim": ("joint_attention_dim", 4096),
    "pooled_dim": ("pooled_projection_dim", 768),
    "guidance_embeds": ("guidance_embeds", False),
    "rope_dims": ("axes_dims_rope", (16, 56, 56)),
}
# The types that a value may have, by the type of its default.
_KINDS = {int: int, bool: bool, tuple: list | tuple, type(None): int | None}
# Other fields of diffusers, and the value that ours supports, which is also the default there.
FIXED = {"patch_size": 1}

# ours -> theirs, each with kernel and bias (or, for a norm, a scale)
_EMBEDDINGS = {**EMBEDDINGS, "image": "x_embedder"}
_GUIDANCE = {
    "guidance/up": "time_text_embed.guidance_embedder.linear_1",
    "guidance/down": "time_text_embed.guidance_embedder.linear_2",
}
_SINGLE = {
    "modulation": "norm.linear",
    "mlp": "proj_mlp",
    "attention/query": "attn.to_q",
    "attention/key": "attn.to_k",
    "attention/value": "attn.to_v",
}
_SINGLE_NORMS = {"attention/query_norm": "attn.norm_q", "attention/key_norm": "attn.norm_k"}


def table(module: FluxTransformer) -> Table:
    """Where diffusers' tensors are in the weights of `module`."""
    embeddings = _EMBEDDINGS | (_GUIDANCE if module.guidance_embeds else {})
    double, single = "transformer_blocks.{layer}.", "single_transformer_blocks.{layer}."
    return (
        *linears(embeddings),
        *block(module.double_block, "double/", double),
        *linears(_SINGLE, "single/", single),
        *scales(_SINGLE_NORMS, "single/", single),
        # They join both branches before one projection; ours has a separate part for each.
        Rule(
            ("single/attention_output/kernel", "single/mlp_output/kernel"),
            f"{single}proj_out.weight",
            axes=(1, 0),
            along=1,
        ),
        Rule("single/attention_output/bias", f"{single}proj_out.bias"),
        *linears(OUTPUT),
    )


def describe(module: FluxTransformer) -> dict[str, Any]:
    """The config.json of `module`."""
    sizes = {key: getattr(module, field) for field, (key, _) in FIELDS.items()}
    return {"_class_name": CLASS, **FIXED, **sizes}


def module_of(config: Mapping[str, Any], path: Path) -> FluxTransformer:
    """The module that the config.json at `path` describes.

    Raises:
      WeightsError: it describes another model, or a FLUX model that ours does not support.
    """
    if (found := config.get("_class_name")) != CLASS:
        raise WeightsError(f"{path}: _class_name is {found!r}, not {CLASS!r}; give a FLUX.1 folder")
    defaults = dict(FIELDS.values()) | FIXED
    for key, value in config.items():
        if key.startswith("_"):
            continue
        if key not in defaults:
            raise WeightsError(
                f"{path}: {key} is {value!r}, which is not supported; take a plain {CLASS}"
            )
        if not isinstance(value, _KINDS[type(defaults[key])]):
            raise WeightsError(f"{path}: {key} is {value!r}; restore the file from a copy")
        if value != FIXED.get(key, value):
            raise WeightsError(
                f"{path}: {key} is {value!r}, but only {FIXED[key]!r} is supported; take a "
                f"plain {CLASS}"
            )
    sizes = {field: config.get(key, default) for field, (key, default) in FIELDS.items()}
    sizes["out_channels"] = sizes["out_channels"] or sizes["channels"]
    sizes["rope_dims"] = tuple(sizes["rope_dims"])
    try:
        return FluxTransformer(**sizes)
    except ValueError as error:
        raise WeightsError(f"{path}: {error} (axes_dims_rope, attention_head_dim)") from error
