"""The KL autoencoder as diffusers writes it (`AutoencoderKL`), FLUX's among them.

Our tree has diffusers' own names, so the table follows from the weights: convolutions turn from
(out, in, h, w) to (h, w, in, out), projections from (out, in) to (in, out).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicom_jax.core.module import iter_specs
from unicom_jax.interop.layouts.description import check_fixed, read_fields
from unicom_jax.interop.mapping import Rule, Table
from unicom_jax.models.autoencoder import AutoencoderKL

# Fields of AutoencoderKL: the key of diffusers' config.json, and its default there.
FIELDS = {
    "latent_channels": ("latent_channels", 4),
    "widths": ("block_out_channels", (64,)),
    "resnets": ("layers_per_block", 1),
    "groups": ("norm_num_groups", 32),
    "quant_conv": ("use_quant_conv", True),
    "scale": ("scaling_factor", 0.18215),
    "shift": ("shift_factor", 0.0),
}
# What else an autoencoder can be there, and what ours is; the first is also the default there.
FIXED = {
    "in_channels": (3,),
    "out_channels": (3,),
    "act_fn": ("silu", "swish"),
    "mid_block_add_attention": (True,),
    "latents_mean": (None,),
    "latents_std": (None,),
}
BLOCKS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
REMEDY = "take an autoencoder like those of Stable Diffusion and FLUX"


def table(module: AutoencoderKL) -> Table:
    """Rules for all weights of `module`."""
    rules = []
    for (*stem, leaf), spec in iter_specs(module.specs()):
        name = f"{'.'.join(stem)}.{'bias' if leaf == 'bias' else 'weight'}"
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: ()}[len(spec.shape)]
        rules.append(Rule("/".join((*stem, leaf)), name, axes))
    return tuple(rules)


# The attention of diffusers before 0.15, which it still reads: old name, new name.
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_OLD = re.compile(rf"(\.attentions\.\d+)\.({'|'.join(OLD_NAMES)})\.(?=weight$|bias$)")


def new_name(name: str) -> str:
    """The name of a tensor today, from its name in a file of any version."""
    return _OLD.sub(lambda found: f"{found[1]}.{OLD_NAMES[found[2]]}.", name)


def describe(module: AutoencoderKL) -> dict[str, Any]:
    """The config.json of `module`."""
    levels = len(module.widths)
    return {
        "_class_name": "AutoencoderKL",
        **{key: getattr(module, ours) for ours, (key, _) in FIELDS.items()},
        "use_post_quant_conv": module.quant_conv,
        **{key: values[0] for key, values in FIXED.items()},
        **{key: [kind] * levels for key, kind in BLOCKS.items()},
        "block_out_channels": list(module.widths),
    }


def module_of(config: Mapping[str, Any], path: Path) -> AutoencoderKL:
    """The autoencoder that a config.json at `path` describes.

    Raises:
      ConfigError: it is of an autoencoder that ours does not support.
    """
    sizes = read_fields(config, FIELDS, path)
    sizes["widths"] = tuple(sizes["widths"])
    levels = len(sizes["widths"])
    named = {"_class_name": ("AutoencoderKL",)} if "_class_name" in config else {}
    blocks = {key: ([kind] * levels,) for key, kind in BLOCKS.items()}
    listed = {key: list(config[key]) for key in BLOCKS if key in config}
    check_fixed({**config, **listed}, {**named, **FIXED, **blocks}, path, REMEDY)
    # diffusers fills in True where the key is absent, whatever `use_quant_conv` says.
    check_fixed(
        {"use_post_quant_conv": config.get("use_post_quant_conv", True)},
        {"use_post_quant_conv": (sizes["quant_conv"],)},
        path,
        REMEDY,
    )
    return AutoencoderKL(**sizes)
