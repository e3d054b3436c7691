"""Cheers' released checkpoint in a configuration: what has to agree, and which keys to set."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicom_jax.config import ConfigError, values
from unicom_jax.families.build import DARKEST, build_autoencoder, build_unified
from unicom_jax.families.cheers import CheersImages
from unicom_jax.interop.folders import module_in
from unicom_jax.interop.layouts import cheers
from unicom_jax.interop.layouts.description import DESCRIPTION
from unicom_jax.interop.layouts.layout import LAYOUTS
from unicom_jax.runs.sizes import (
    check_autoencoder,
    check_same,
    check_transformer,
    check_vision,
)

Config = Mapping[str, Any]
# Options with which the weights were trained; others would silently give different numbers.
TRAINED_WITH = {
    "data.unconditional": "masked",
    "unified.fold": cheers.FOLD,
    "unified.image_positions": "plain",
    **{f"unified.cheers.{name}": value for name, value in cheers.OPTIONS.items()},
    "unified.cheers.pixel_range": next(k for k, v in DARKEST.items() if v == cheers.DARKEST),
}


def is_cheers(folder: Path) -> bool:
    """Whether a folder's config.json says that it holds a checkpoint of Cheers."""
    try:
        found = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # whatever reads it as another model reports the error
    return isinstance(found, dict) and found.get("model_type") == cheers.MODEL_TYPE


def released_cheers(config: Config, key: str, folder: Path) -> cheers.Cheers:
    """The model of a checkpoint, checked to be that of the configuration.

    Args:
      key: the configuration key that names `folder`.

    Raises:
      ConfigError: it is a different model; the message names the keys to set.
    """
    theirs: cheers.Cheers = module_in(folder, LAYOUTS["cheers"])
    if (pathway := config["unified"]["pathway"]) != "cheers":
        raise ConfigError(
            f"{key}={folder} is a checkpoint of Cheers, but the model here has "
            f"unified.pathway={pathway}; start from experiments/cheers_1_5b.py, or use weights of "
            "single parts"
        )
    _check_options(config, key, folder)
    own, ours = build_autoencoder(config), build_unified(config)
    given: CheersImages = theirs.unified.images
    images: CheersImages = ours.images
    check_autoencoder(own, theirs.autoencoder, key, folder)
    check_vision(images.tokenizer.vision, given.tokenizer.vision, key, folder)
    names = config["unified"]["transformer"]
    check_transformer(names, ours.transformer, theirs.unified.transformer, key, folder)
    for stage in ("semantics", "details"):
        keys = {name: f"unified.cheers.{stage}.{name}" for name in ("depth", "heads", "kv_heads")}
        check_same(getattr(images.head, stage), getattr(given.head, stage), keys, key, folder)
    return theirs


def _check_options(config: Config, key: str, folder: Path) -> None:
    found = dict(values(config))
    if wrong := {name: found[name] for name, v in TRAINED_WITH.items() if found[name] != v}:
        here = ", ".join(f"{name}={value}" for name, value in wrong.items())
        flags = " ".join(f"--config.{name}={TRAINED_WITH[name]}" for name in wrong)
        raise ConfigError(f"{key}={folder} was not trained with {here}; set {flags}")
