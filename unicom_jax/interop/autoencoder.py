"""The KL autoencoder of a diffusers folder, FLUX's among them: its sizes and its weights.

    FOLDER/config.json, diffusion_pytorch_model.safetensors

A run copies the folder into its workdir when it starts, so that the workdir needs nothing else
later; `config.codec.autoencoder.facts` then says what the models have to know about it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from safetensors import SafetensorError
from safetensors.flax import load_file

from data_pipelines.build import image_policy
from unicom_jax.config import ConfigError
from unicom_jax.core.module import Params, ParamSpec, Specs
from unicom_jax.models.autoencoder import AutoencoderKL
from unicom_jax.models.build import autoencoder_path, build_space
from unicom_jax.models.paint_space import AUTOENCODER, LatentSpace

DESCRIPTION, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
# Fields of AutoencoderKL: the key of diffusers' config.json, and its default there.
FIELDS = {
    "latent_channels": ("latent_channels", 4),
    "widths": ("block_out_channels", (64,)),
    "resnets": ("layers_per_block", 1),
    "groups": ("norm_num_groups", 32),
    "quant_conv": ("use_quant_conv", True),
    "scale": ("scaling_factor", 0.18215),
    "shift": ("shift_factor", None),
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


def adopt_autoencoder(config: ConfigDict, workdir: Path) -> None:
    """Copies the autoencoder of `config.codec.autoencoder.path` into `workdir`, fills its facts in.

    A workdir that has its copy keeps it; the path is not read again. Without a path: nothing.

    Raises:
      ConfigError: the folder is missing or not such an autoencoder, or it does not fit the pictures
        (`data.policy` is "naflex").
      ValueError: it does not fit the patch.
    """
    if not (path := autoencoder_path(config)):
        return
    if config.data.policy == "naflex":
        raise ConfigError(
            "codec.autoencoder.path needs pictures of a few shapes, data.policy=naflex has any; "
            'set --config.data.policy=bucket, or --config.codec.autoencoder.path="" for pixels'
        )
    folder, given = workdir / AUTOENCODER, Path(path)
    adopted = (folder / DESCRIPTION).is_file()
    if not adopted:
        _check_folder(given, f"codec.autoencoder.path={path}")
    config.codec.autoencoder.facts = autoencoder_facts(config, folder if adopted else given)
    build_space(config)  # raises where the patch does not fit
    if not adopted:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, DESCRIPTION):  # the description last: it says that all is there
            shutil.copyfile(given / name, folder / f"{name}.part")
            (folder / f"{name}.part").replace(folder / name)


def autoencoder_facts(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """What the models have to know of the autoencoder in `folder`; only its config.json is read.

    Its sizes, and the canvas of patches on which it sees the pictures of `config.data`.
    """
    canvas = image_policy(config).canvas(config.data.patch, config.codec.pool)
    return {"sizes": read_sizes(folder), "canvas": canvas}


def _check_folder(folder: Path, name: str) -> None:
    for file in (DESCRIPTION, WEIGHTS):
        if not (folder / file).is_file():
            raise ConfigError(
                f"{name}: there is no {file}; give the folder of a diffusers AutoencoderKL, with "
                f"{DESCRIPTION} and {WEIGHTS}"
            )


def read_sizes(folder: Path) -> dict[str, Any]:
    """The fields of `AutoencoderKL` from the folder's config.json.

    Raises:
      ConfigError: it is no JSON, or of an autoencoder that ours cannot stand for.
    """
    path = folder / DESCRIPTION
    try:
        stored = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); restore it from a copy") from error
    sizes = {field: stored.get(key, default) for field, (key, default) in FIELDS.items()}
    sizes["widths"] = tuple(sizes["widths"])
    sizes["shift"] = sizes["shift"] or 0.0
    levels = len(sizes["widths"])
    wanted = {
        "_class_name": ("AutoencoderKL",),
        **FIXED,
        **{key: ([kind] * levels,) for key, kind in BLOCKS.items()},
        "use_post_quant_conv": (sizes["quant_conv"],),
    }
    for key, allowed in wanted.items():
        found = stored.get(key, True if key == "use_post_quant_conv" else allowed[0])
        if found not in allowed:
            raise ConfigError(
                f"{path}: {key} is {found!r}, of which there is only {allowed[0]!r} here; take an "
                "autoencoder like those of Stable Diffusion and FLUX"
            )
    return sizes


def load_autoencoder(config: Mapping[str, Any], workdir: Path) -> dict[str, Params]:
    """`{"autoencoder": weights}` from the copy in `workdir`; {} for a codec in pixel space.

    Raises:
      ConfigError: the copy is gone or damaged.
      ValueError: it is another one than the configuration describes.
    """
    space = build_space(config)
    if not isinstance(space, LatentSpace):
        return {}
    folder = workdir / AUTOENCODER
    mend = f"copy it again from {autoencoder_path(config)}"
    if not (folder / WEIGHTS).is_file():
        raise ConfigError(f"{folder / WEIGHTS} is missing, without it nothing is painted; {mend}")
    try:
        state = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ConfigError(f"{folder / WEIGHTS} is damaged ({error}); {mend}") from error
    return {AUTOENCODER: from_diffusers(space.autoencoder, state)}


def from_diffusers(module: AutoencoderKL, state: Mapping[str, np.ndarray]) -> Params:
    """Weights for `module` from the state dict of a diffusers `AutoencoderKL`, as NumPy arrays.

    Convolutions turn from (out, in, h, w) to (h, w, in, out), projections from (out, in) to
    (in, out).
    """
    unused = set(state)

    def fill(node: Specs, prefix: str) -> Params:
        return {
            name: leaf(child, prefix + name)
            if isinstance(child, ParamSpec)
            else fill(child, f"{prefix}{name}.")
            for name, child in node.items()
        }

    def leaf(spec: ParamSpec, path: str) -> jax.Array:
        stem, _, kind = path.rpartition(".")
        name = f"{stem}.{'bias' if kind == 'bias' else 'weight'}"
        if name not in state:
            raise ValueError(
                f"autoencoder weights lack {name!r}; do widths and resnets fit the file?"
            )
        unused.discard(name)
        array = np.asarray(state[name])
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
        array = array.transpose(axes)
        if array.shape != spec.shape:
            raise ValueError(f"{name!r} has shape {array.shape}, not {spec.shape}; fix the config")
        return jnp.asarray(array, spec.dtype)

    params = fill(module.specs(), "")
    if unused:
        raise ValueError(f"the autoencoder has no place for {sorted(unused)[0]!r}; fix the config")
    return params
