"""Where a `Generator` gets its weights: a training directory, or chance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from data_pipelines.tokenizer import Tokenizer, check_tokenizer, load_tokenizer
from unicom_jax.core.module import Params
from unicom_jax.interop.autoencoder import load_autoencoder
from unicom_jax.interop.checkpoint import (
    CheckpointError,
    read_config,
    restore_params,
    stage_steps,
)
from unicom_jax.models.build import build_codec, build_encoder, build_space, build_unified
from unicom_jax.models.paint_space import AUTOENCODER, LatentSpace

UNIFIED_STAGES = ("sft", "continue", "pretrain", "align")  # the furthest one is used


def load(workdir: Path) -> tuple[dict[str, Any], Tokenizer, dict[str, Params]]:
    """Configuration, tokenizer and newest weights of a directory.

    The weights are `vision`, `codec`, `unified`, and for a codec over latents `autoencoder`.

    Raises:
      CheckpointError: no checkpoint there, a damaged one, or one of another version.
      TokenizerError: its tokenizer is missing, damaged or not the one it was trained with.
      ConfigError: its autoencoder, where it has one, is missing or damaged.
    """
    config = read_config(workdir)
    tokenizer = load_tokenizer(workdir / "tokenizer")
    if fingerprint := config["data"].get("tokenizer_fingerprint"):
        check_tokenizer(tokenizer, fingerprint, str(workdir))
    stage = next((s for s in UNIFIED_STAGES if stage_steps(workdir, s)), "pretrain")
    try:
        modules = build_encoder(config), build_codec(config), build_unified(config)
    except KeyError as error:
        raise CheckpointError(
            f"{workdir / 'config.json'} lacks the key {error}, so another version of "
            "unicom_jax wrote it; use that version, or train again"
        ) from error
    encoder, codec, unified = (module.abstract() for module in modules)
    params = {
        **restore_params(workdir, "encoder", encoder, parts=("vision",)),
        "codec": restore_params(workdir, "codec", codec),
        "unified": restore_params(workdir, stage, unified),
        **load_autoencoder(config, workdir),
    }
    return config, tokenizer, params


def untrained(config: Mapping[str, Any], seed: int) -> dict[str, Params]:
    """Random weights of the modules of `config`, an autoencoder's too."""
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "vision": build_encoder(config).vision.init(keys[0]),
        "codec": build_codec(config).init(keys[1]),
        "unified": build_unified(config).init(keys[2]),
    }
    if isinstance(space := build_space(config), LatentSpace):
        params[AUTOENCODER] = space.autoencoder.init(jax.random.fold_in(keys[1], 1))
    return params
