"""The weights that a model is used with: of a training directory, or of chance."""

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
    has_average,
    read_config,
    restore_params,
    stage_steps,
)
from unicom_jax.models.build import build_codec, build_encoder, build_space, build_unified
from unicom_jax.models.paint_space import AUTOENCODER, LatentSpace

UNIFIED_STAGES = ("sft", "continue", "pretrain", "align")  # the furthest one is used


def stages_in_use(workdir: Path) -> dict[str, str]:
    """The stage that each of `vision`, `codec` and `unified` comes from."""
    furthest = next((s for s in UNIFIED_STAGES if stage_steps(workdir, s)), "pretrain")
    return {"vision": "encoder", "codec": "codec", "unified": furthest}


def load(
    workdir: Path, kind: str = "", *, on_host: bool = False
) -> tuple[dict[str, Any], Tokenizer, dict[str, Params]]:
    """Configuration, tokenizer and newest weights of a directory.

    The weights are `vision`, `codec`, `unified`, and for a codec over latents `autoencoder`.

    Args:
      on_host: as NumPy arrays, see `restore_params`.
      kind: "ema", "raw" (not averaged), or "": those for use, averaged ones where EMA was on.

    Raises:
      CheckpointError: no checkpoint there, a damaged one, one of another version, or none with
        averages where `kind` asks for them.
      TokenizerError: its tokenizer is missing, damaged or not the one it was trained with.
      ConfigError: its autoencoder, where it has one, is missing or damaged.
    """
    config = read_config(workdir)
    tokenizer = load_tokenizer(workdir / "tokenizer")
    if fingerprint := config["data"].get("tokenizer_fingerprint"):
        check_tokenizer(tokenizer, fingerprint, str(workdir))
    stages = stages_in_use(workdir)
    try:
        modules = build_encoder(config), build_codec(config), build_unified(config)
    except KeyError as error:
        raise CheckpointError(
            f"{workdir / 'config.json'} lacks the key {error}, so another version of "
            "unicom_jax wrote it; use that version, or train again"
        ) from error
    encoder, codec, unified = (module.abstract() for module in modules)
    raw = kind == "raw"
    params = {
        **restore_params(workdir, "encoder", encoder, parts=("vision",), raw=raw, on_host=on_host),
        "codec": restore_params(workdir, "codec", codec, raw=raw, on_host=on_host),
        "unified": restore_params(workdir, stages["unified"], unified, raw=raw, on_host=on_host),
        **load_autoencoder(config, workdir),
    }
    if kind == "ema" and not any(has_average(workdir, stage) for stage in stages.values()):
        raise CheckpointError(
            f"{workdir} holds no averaged weights; leave --weights out, or train with ema_decay"
        )
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
