"""The weights that a model is used with: of a training directory, or of chance."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from data_pipelines.sequences.tokenizer import Tokenizer, check_tokenizer, load_tokenizer
from unicom_jax.core.module import Params
from unicom_jax.families.build import build_codec, build_encoder, build_space, build_unified
from unicom_jax.interop.layouts.unicom import Unicom, of_run
from unicom_jax.models.paint_space import AUTOENCODER, LatentSpace
from unicom_jax.runs.autoencoder import load_autoencoder
from unicom_jax.runs.checkpoint import (
    CheckpointError,
    chosen_step,
    has_average,
    read_config,
    restore_params,
    stage_steps,
)
from unicom_jax.runs.stages import IN_MODEL, PARTS
from unicom_jax.runs.trained import source_label


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which weights of a run.

    Attributes:
      kind: "ema", "raw" (not averaged), or "": those for use, averaged ones where EMA was on.
      step: of the unified model: a number, "best" (lowest held-out loss), or "": the newest.
    """

    kind: str = ""
    step: str = ""


IN_USE = Choice()


def stages_in_use(workdir: Path, step: str = "") -> dict[str, tuple[str, str]]:
    """The stage that each of `vision`, `codec` and `unified` comes from, and the step: "", newest.

    Args:
      step: of the unified model, as for `Choice`.
    """
    config = read_config(workdir)
    return {
        tree: (source_label(config, workdir, of.part), step if tree == "unified" else "")
        for tree, of in IN_MODEL.items()
    }


def steps_in_use(workdir: Path, step: str = "") -> dict[str, tuple[str, int]]:
    """The stage and the number of its step of each part that there is a checkpoint of.

    Raises:
      CheckpointError: the unified model has none of this `step`.
    """
    return {
        part: (stage, chosen_step(workdir, stage, wanted))
        for part, (stage, wanted) in stages_in_use(workdir, step).items()
        if stage_steps(workdir, stage)
    }


def load(
    workdir: Path, choice: Choice = IN_USE
) -> tuple[dict[str, Any], Tokenizer, dict[str, Params]]:
    """Configuration, tokenizer and weights of a directory; see `describe` and `restore`."""
    config, tokenizer, module = describe(workdir)
    return config, tokenizer, restore(workdir, config, module, choice)


def describe(workdir: Path) -> tuple[dict[str, Any], Tokenizer, Unicom]:
    """Configuration, tokenizer and modules of a directory; no weights are read.

    Raises:
      CheckpointError: there is no run, or one of another version.
      TokenizerError: its tokenizer is missing, damaged or not the one it was trained with.
    """
    config = read_config(workdir)
    tokenizer = load_tokenizer(workdir / "tokenizer")
    if fingerprint := config["data"].get("tokenizer_fingerprint"):
        check_tokenizer(tokenizer, fingerprint, str(workdir))
    try:
        return config, tokenizer, of_run(config)
    except KeyError as error:
        raise CheckpointError(
            f"{workdir / 'config.json'} lacks the key {error}, so another version of "
            "unicom_jax wrote it; use that version, or train again"
        ) from error


def restore(
    workdir: Path,
    config: Mapping[str, Any],
    module: Unicom,
    choice: Choice = IN_USE,
    *,
    on_host: bool = False,
    only: Sequence[str] = (),
) -> dict[str, Params]:
    """The weights `vision`, `codec`, `unified`, for a codec over latents `autoencoder`.

    Args:
      on_host: as NumPy arrays, see `restore_params`.
      only: path of the one part to read, e.g. ("unified", "transformer"); (): all.

    Raises:
      CheckpointError: no checkpoint there, a damaged one, or none of what `choice` asks for.
      ConfigError: its autoencoder, where it has one, is missing or damaged.
    """
    if choice.kind == "ema" and not any(
        has_average(workdir, *at) for at in steps_in_use(workdir, choice.step).values()
    ):
        raise CheckpointError(
            f"{workdir} holds no averaged weights; leave --weights out, or train with ema_decay"
        )
    options = {"raw": choice.kind == "raw", "on_host": on_host}
    params: dict[str, Params] = {}
    for tree, (stage, step) in stages_in_use(workdir, choice.step).items():
        if only and only[0] != tree:
            continue
        of = IN_MODEL[tree]
        abstract, parts = PARTS[of.part].build(config).abstract(), of.read or only[1:2] or None
        params[tree] = of.of(
            restore_params(workdir, stage, abstract, parts=parts, step=step, **options)
        )
    if not only or only[0] == AUTOENCODER:
        params |= load_autoencoder(config, workdir)
    return params


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
