"""`unicom export`: writes a trained model, or a part of it, as a folder that PyTorch can load."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.sequences.tokenizer import Tokenizer
from unicom_jax.config import ConfigError, values
from unicom_jax.exchange import peft
from unicom_jax.exchange.parts import PARTS
from unicom_jax.exchange.written import DTYPES, Options, Run, fill, write_model, write_part
from unicom_jax.families.build import build_autoencoder
from unicom_jax.interop.atomic import new_folder
from unicom_jax.interop.layouts import exported
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.models.paint_space import AUTOENCODER
from unicom_jax.runs import weights
from unicom_jax.runs.autoencoder import has_trained, load_trained

# The ways in which the exported code can resize pictures.
FORMAT = {
    "data.policy": ("fixed", "naflex", "bucket", "bucket_walk"),
    "data.understood_policy": ("same",),
}
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def read_size(text: str) -> int:
    """Bytes of "5GB", "200MB" or a plain number.

    Raises:
      ValueError: the text is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?B?)", text.strip().upper())
    size = int(float(found[1]) * UNITS.get(found[2], 0)) if found else 0
    if size < 1:
        raise ValueError(f"--max-shard-size={text}: give a size like 5GB or 200MB")
    return size


def export(
    workdir: Path,
    target: Path,
    options: Options,
    check: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Writes `target` from the weights of a run, whole or not at all.

    Args:
      check: examines the complete folder before it gets its name; raises to reject it.

    Raises:
      CheckpointError, TokenizerError: the run cannot be read.
      ConfigError: the model has no such part, or one that the layout cannot express.
      FileExistsError: `target` already exists.
    """
    _check_target(workdir, target, options.overwrite)
    config, tokenizer = weights.describe(workdir)
    if options.to == AUTOENCODER and has_trained(config, workdir):
        write = _trained_autoencoder(workdir, config, options)
    else:
        write = _weights_in_use(workdir, config, tokenizer, options)
    with new_folder(target, replace=options.overwrite) as folder:
        write(folder)
        check(folder)
    return target


def _trained_autoencoder(
    workdir: Path, config: Mapping[str, Any], options: Options
) -> Callable[[Path], None]:
    """Fills a folder with the autoencoder that the run itself trained."""
    _check_step(options, AUTOENCODER)
    if options.choice.kind == "base":
        raise ConfigError(f"{workdir}: its autoencoder has no adapters; leave --weights out")
    raw = options.choice.kind == "raw"
    params = load_trained(config, workdir, raw=raw, on_host=True)
    return lambda folder: fill(
        folder, LAYOUTS[AUTOENCODER], build_autoencoder(config), params, options
    )


def _weights_in_use(
    workdir: Path, config: Mapping[str, Any], tokenizer: Tokenizer, options: Options
) -> Callable[[Path], None]:
    """Fills a folder with the whole model, its adapters, or a part of it."""
    modules = weights.modules_in_use(config, workdir)
    part, apart = PARTS.get(options.to), options.to == peft.TARGET
    only, keys, whole = ("unified",) * apart, (), None
    if part:
        if isinstance(found := part.find(modules), str):
            raise ConfigError(f"{workdir} has no part {options.to!r}: {found}")
        only, keys = found.path, found.keys
    else:
        whole = exported.of_run(config)
        if not apart:
            check_format(config)
    _check_step(options, only[0] if only else "unified")
    params = weights.restore(
        workdir, config, options.choice, on_host=True, only=only, keys=keys, keep_adapters=apart
    )
    run = Run(workdir, options.choice, config, tokenizer, params, modules)
    if part:
        return lambda folder: write_part(run, part, folder, options)
    if apart:
        return lambda folder: peft.write_adapters(folder, whole, params, DTYPES[options.dtype][0])
    return lambda folder: write_model(run, whole, folder, options)


def _check_step(options: Options, tree: str) -> None:
    """Refuses a --step that would choose nothing of `tree`, a tree of weights."""
    if options.choice.step and tree != "unified":
        raise ConfigError(
            f"--step={options.choice.step} chooses a checkpoint of the unified model, which "
            f"--to={options.to} does not write; leave it out"
        )


def check_format(config: Mapping[str, Any]) -> None:
    """Refuses a model whose sequences the exported code would write differently.

    Raises:
      ConfigError: it names the key.
    """
    found = dict(values(config))
    for key, known in FORMAT.items():
        if found[key] not in known:
            raise ConfigError(
                f"the exported PyTorch model supports only {key}={' or '.join(known)}, not "
                f"{found[key]}; export a part of it (--to), or use it with `unicom sample`"
            )


def _check_target(workdir: Path, target: Path, overwrite: bool) -> None:
    if target.is_symlink():
        raise FileExistsError(f"{target} is a link; name the folder itself")
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(
            f"{target} already exists; name a new folder, or replace it with --overwrite"
        )
    if not any(target.glob("*.safetensors")) or workdir.resolve().is_relative_to(target.resolve()):
        raise FileExistsError(
            f"{target} is not an earlier export, so it is not overwritten; name a new folder"
        )
