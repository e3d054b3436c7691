"""Stable Diffusion 3's transformer as diffusers lays it out (`SD3Transformer2DModel`).

FOLDER/config.json, diffusion_pytorch_model.safetensors or its shards

Their blocks are numbered through; ours are stacked by kind, and the last one is alone. The table of
places is a tensor there too. It is read as it is, since it need not follow from config.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicom_jax.config import ConfigError
from unicom_jax.interop.layouts.description import check_fixed, read_fields
from unicom_jax.interop.layouts.streams import EMBEDDINGS, OUTPUT, block, linears
from unicom_jax.interop.mapping import Rule, Table
from unicom_jax.models.mmdit import POSITIONS, MMDiT

CLASS = "SD3Transformer2DModel"
# Fields of MMDiT: the key of diffusers' config.json, and its default there.
FIELDS = {
    "latent_channels": ("in_channels", 16),
    "patch": ("patch_size", 2),
    "depth": ("num_layers", 18),
    "heads": ("num_attention_heads", 18),
    "head_dim": ("attention_head_dim", 64),
    "context_dim": ("joint_attention_dim", 4096),
    "pooled_dim": ("pooled_projection_dim", 2048),
    "position_side": ("pos_embed_max_size", 96),
    "sample_size": ("sample_size", 128),
}
DUAL, NORM, OUT, CAPTION = (
    "dual_attention_layers",
    "qk_norm",
    "out_channels",
    "caption_projection_dim",
)
CAPTION_DEFAULT = 1152
REMEDY = f"take a plain {CLASS}, as of Stable Diffusion 3 and 3.5"


def table(module: MMDiT) -> Table:
    """Where diffusers' tensors are in the weights of `module`."""
    width, channels, patch = module.width, module.latent_channels, module.patch
    rules = [
        *linears(EMBEDDINGS),
        Rule(
            "image/kernel",
            "pos_embed.proj.weight",
            axes=(1, 2, 3, 0),
            shape=(width, channels, patch, patch),
        ),
        Rule("image/bias", "pos_embed.proj.bias"),
        Rule(POSITIONS, "pos_embed.pos_embed", shape=(1, module.position_side**2, width)),
        *linears(OUTPUT),
    ]
    first = 0
    for name, (kind, count) in module.blocks.items():
        number = str(first) if name == "last" else "{layer}"
        own = block(kind, f"{name}/", f"transformer_blocks.{number}.")
        rules += [dataclasses.replace(rule, first=first) for rule in own]
        first += count
    return tuple(rules)


def describe(module: MMDiT) -> dict[str, Any]:
    """The config.json of `module`."""
    return {
        "_class_name": CLASS,
        **{key: getattr(module, field) for field, (key, _) in FIELDS.items()},
        OUT: module.latent_channels,
        CAPTION: module.width,
        DUAL: list(range(module.dual_depth)),
        NORM: "rms_norm" if module.qk_norm else None,
    }


def module_of(config: Mapping[str, Any], path: Path) -> MMDiT:
    """The module that the config.json at `path` describes.

    Raises:
      ConfigError: it describes another model, or one that ours does not support.
    """
    if (found := config.get("_class_name")) != CLASS:
        raise ConfigError(f"{path}: _class_name is {found!r}, not {CLASS!r}; {REMEDY}")
    known = {key for key, _ in FIELDS.values()} | {DUAL, NORM, OUT, CAPTION}
    if unknown := [key for key in config if not key.startswith("_") and key not in known]:
        value = config[unknown[0]]
        raise ConfigError(f"{path}: {unknown[0]} is {value!r}, which is not supported; {REMEDY}")
    sizes = read_fields(config, FIELDS, path)
    dual = list(read_fields(config, {DUAL: (DUAL, ())}, path)[DUAL])
    if dual != list(range(len(dual))):
        raise ConfigError(
            f"{path}: {DUAL} is {dual}, but only the first layers may have a second attention; "
            f"{REMEDY}"
        )
    fixed = {
        NORM: (None, "rms_norm"),
        OUT: (sizes["latent_channels"], None),
        CAPTION: (sizes["heads"] * sizes["head_dim"],),
    }
    # diffusers assumes these numbers if the keys are absent, whatever the other sizes are.
    check_fixed({OUT: 16, CAPTION: CAPTION_DEFAULT, **config}, fixed, path, REMEDY)
    try:
        return MMDiT(dual_depth=len(dual), qk_norm=config.get(NORM) is not None, **sizes)
    except ValueError as error:
        raise ConfigError(f"{path}: {error} ({DUAL}, num_layers)") from error
