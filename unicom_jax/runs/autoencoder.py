"""KL autoencoders of a run: one from a diffusers folder (such as FLUX's), or one that it trains.

    FOLDER/config.json, diffusion_pytorch_model.safetensors

A run copies the folder into its workdir when it starts, so that the workdir needs nothing else
later; `config.codec.autoencoder.facts` then holds what the models need to know about it. A run that
trains an autoencoder keeps it like the weights of any stage and has no such copy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.build import grid_unit, image_policy
from unicom_jax.config import ConfigError
from unicom_jax.core.module import Module, Params, Specs, jit_once
from unicom_jax.core.paths import as_path, copy_file
from unicom_jax.families.build import (
    autoencoder_path,
    build_autoencoder,
    build_space,
    build_trained_autoencoder,
    family_of,
)
from unicom_jax.families.family import pixels
from unicom_jax.interop.folders import check_model, check_numbers, module_in, read_model
from unicom_jax.interop.layouts.description import DESCRIPTION
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.interop.tensors import WeightsError, weight_files
from unicom_jax.models.autoencoder import KINDS
from unicom_jax.models.paint_space import AUTOENCODER, LatentSpace
from unicom_jax.parallel.sharding import param_shardings
from unicom_jax.runs.checkpoint import restore_params
from unicom_jax.runs.stages import occurrences
from unicom_jax.runs.trained import furthest, source_label
from unicom_jax.runs.workdir import stage_steps

LAYOUT = LAYOUTS["autoencoder"]


def adopt_autoencoder(config: ConfigDict, workdir: Path, *, copy: bool = True) -> None:
    """Copies the autoencoder of `config.codec.autoencoder.path` to `workdir`; fills in its facts.

    For buckets it also fills in `config.autoencoder.canvas`, for models that use the autoencoder
    stage. A workdir that has a copy keeps it; the path is not read again. `copy=False` only fills
    in. The weights are checked in any case, so that a damaged file is found now and not by the
    stage that needs it; copied weights are also read once, to find numbers that are not finite.

    Raises:
      WeightsError: the weights are damaged, or are not those that their config.json describes.
      ConfigError: the folder is missing or not such an autoencoder, or it does not fit the pictures
        (`data.policy` is "naflex"), or the run trains one itself, or its family uses none.
      ValueError: it does not fit the patch.
    """
    if config.data.policy.startswith("bucket"):
        config.autoencoder.canvas = canvas_of(config)
    if not (path := autoencoder_path(config)):
        return
    if family_of(config).space is pixels:
        raise ConfigError(
            f"codec.autoencoder.path={path}: a model of unified.pathway={config.unified.pathway} "
            "draws in the latents of the stage autoencoder; name the folder in "
            "autoencoder.init_from instead"
        )
    trains = any(one.spec.part == AUTOENCODER for one in occurrences(config.stages))
    if trains or stage_steps(workdir, AUTOENCODER):
        raise ConfigError(
            f"codec.autoencoder.path={path}: this run trains an autoencoder of its own; export "
            "it (unicom export --to=autoencoder), and name its folder in another --workdir"
        )
    if config.data.policy == "naflex":
        raise ConfigError(
            "codec.autoencoder.path needs pictures of a few shapes, but data.policy=naflex allows "
            'any; set --config.data.policy=bucket, or --config.codec.autoencoder.path="" for pixels'
        )
    folder, given = workdir / AUTOENCODER, as_path(path)
    adopted = (folder / DESCRIPTION).is_file()
    if not adopted:
        _check_folder(given, f"codec.autoencoder.path={path}")
    found = folder if adopted else given
    config.codec.autoencoder.facts = autoencoder_facts(config, found)
    build_space(config)  # raises if the patch does not fit
    module = module_in(found, LAYOUT)
    if adopted or not copy:
        check_model(found, LAYOUT, module)
    else:
        check_numbers(found, LAYOUT, module)
        folder.mkdir(parents=True, exist_ok=True)
        # The description comes last: it marks the copy as complete.
        for name in (*weight_files(given, LAYOUT.stem).names, DESCRIPTION):
            copy_file(given / name, folder / name)


def autoencoder_facts(config: ConfigDict, folder: Path) -> dict[str, Any]:
    """What the models need to know about the autoencoder in `folder`; reads only its config.json.

    These are its kind and sizes, and the canvas of patches for the pictures of `config.data`.
    """
    return facts_of(config, module_in(folder, LAYOUT))


def facts_of(config: ConfigDict, module: Module) -> dict[str, Any]:
    """Like `autoencoder_facts`, but given the autoencoder itself."""
    return {
        "kind": type(module).__name__,
        "sizes": dataclasses.asdict(module),
        "canvas": canvas_of(config),
    }


def canvas_of(config: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns of patches on which an autoencoder sees the pictures of `config.data`."""
    return image_policy(config).canvas(config["data"]["patch"], grid_unit(config))


def _check_folder(folder: Path, name: str) -> None:
    for file in (DESCRIPTION, *weight_files(folder, LAYOUT.stem).names):
        if not (folder / file).is_file():
            raise ConfigError(
                f"{name}: there is no {file}; give the folder of a diffusers autoencoder "
                f"({' or '.join(KINDS)}), with {DESCRIPTION} and {LAYOUT.stem}.safetensors"
            )


def load_autoencoder(
    config: Mapping[str, Any],
    workdir: Path,
    shardings: Callable[[Specs], Any] | None = None,
) -> dict[str, Params]:
    """`{"autoencoder": weights}` from the copy in `workdir`; {} for a codec in pixel space.

    Args:
      shardings: gives the weights' shardings from their specs; None: one device holds them.

    Raises:
      WeightsError: the copy is missing, damaged, or not the one that the configuration describes.
    """
    space = build_space(config)
    if not isinstance(space, LatentSpace):
        return {}
    try:
        places = shardings(space.autoencoder.specs()) if shardings else None
        folder = workdir / AUTOENCODER
        return {AUTOENCODER: read_model(folder, LAYOUT, space.autoencoder, shardings=places)}
    except WeightsError as error:
        raise WeightsError(
            f"{error}; or delete {workdir / AUTOENCODER} and let `unicom train` copy it again from "
            f"{autoencoder_path(config)}"
        ) from error


# ---- one that was trained here ----------------------------------------------------------------


def has_trained(config: Mapping[str, Any], workdir: Path) -> bool:
    """Whether a stage of `workdir` trained an autoencoder."""
    return furthest(config, workdir, AUTOENCODER) is not None


def load_trained(
    config: Mapping[str, Any],
    workdir: Path,
    *,
    raw: bool = False,
    on_host: bool = False,
    mesh: Mesh | None = None,
) -> Params:
    """Weights of `build_autoencoder(config)` from the furthest stage that trained them.

    Args:
      raw, on_host: see `restore_params`.
      mesh: mesh into whose shards the weights are read directly; None: the first device.

    Raises:
      CheckpointError: the stage's checkpoint is missing or damaged.
    """
    label = source_label(config, workdir, AUTOENCODER)
    module, wanted = build_trained_autoencoder(config), tuple(build_autoencoder(config).specs())
    abstract = module.abstract()
    if mesh is not None:
        places = param_shardings(module.specs(), mesh)
        abstract = jax.tree.map(
            lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
            abstract,
            places,
        )
    return restore_params(workdir, label, abstract, parts=wanted, raw=raw, on_host=on_host)


def fresh_autoencoder(config: Mapping[str, Any], seed: int, mesh: Mesh) -> Params:
    """Random weights of `build_autoencoder(config)`, sharded over `mesh`."""
    module = build_autoencoder(config)
    places = param_shardings(module.specs(), mesh)
    return jit_once(module.init, out_shardings=places)(jax.random.key(seed))
