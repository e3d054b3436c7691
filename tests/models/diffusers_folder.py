"""A small KL autoencoder on disk as diffusers lays it out, written without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

from tests.models.documents import lively
from unicom_jax.core.module import Params
from unicom_jax.models.autoencoder import AutoencoderKL

SMALL = AutoencoderKL(4, (8, 8), resnets=1, groups=4, scale=0.5, shift=0.25)  # shrinks by 2


def state_dict(params: Params) -> dict[str, np.ndarray]:
    """Weights by the names and in the order of axes of diffusers."""
    axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}
    return {
        f"{'.'.join(stem)}.{'bias' if kind == 'bias' else 'weight'}": np.ascontiguousarray(
            np.asarray(leaf).transpose(axes[leaf.ndim])
        )
        for (*stem, kind), leaf in traverse_util.flatten_dict(params).items()
    }


def description(module: AutoencoderKL = SMALL, **changes: object) -> dict[str, object]:
    levels = len(module.widths)
    fields = {
        "_class_name": "AutoencoderKL",
        "latent_channels": module.latent_channels,
        "block_out_channels": module.widths,
        "layers_per_block": module.resnets,
        "norm_num_groups": module.groups,
        "use_quant_conv": module.quant_conv,
        "use_post_quant_conv": module.quant_conv,
        "scaling_factor": module.scale,
        "shift_factor": module.shift,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }
    return {**fields, **changes}


def write_folder(folder: Path, module: AutoencoderKL = SMALL, **changes: object) -> Params:
    """Writes `module` with random weights, which are returned; `changes` are of config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    params = lively(module, scale=0.2)
    (folder / "config.json").write_text(json.dumps(description(module, **changes)))
    save_file(state_dict(params), folder / "diffusion_pytorch_model.safetensors")
    return params
