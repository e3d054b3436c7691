"""Small training directories with random weights, and their exports: nothing is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.sequences.tokenizer import with_token
from tests.data.samples import tokenizer
from tests.families.documents import lively
from tests.models.diffusers_folder import SMALL, SMALL2, write_folder
from tests.tiny import tiny_config
from unicom_jax.config import to_json
from unicom_jax.core.module import Module
from unicom_jax.families.build import build_codec, build_encoder, build_unified
from unicom_jax.runs import checkpoint as files
from unicom_jax.runs.autoencoder import adopt_autoencoder

# The second one has statistics of the squares of a patch of 16 pixels.
AUTOENCODERS = {"small": SMALL, "statistics": dataclasses.replace(SMALL2, side=8)}


def write_run(workdir: Path, *, averaged: bool = False, **overrides: Any) -> Path:
    """A workdir with a checkpoint of every stage; `overrides` as for `tiny_config`.

    `averaged`: the last stage's weights for use are averages, with raw ones beside them.
    `codec__autoencoder__path` of a key of `AUTOENCODERS` stands for that one, written first.
    """
    workdir.mkdir(parents=True)
    if autoencoder := AUTOENCODERS.get(overrides.get("codec__autoencoder__path")):
        overrides["codec__autoencoder__path"] = str(workdir / "given")
        write_folder(workdir / "given", autoencoder)

    def modules(config: ConfigDict) -> dict[str, tuple[Module, float]]:
        return {
            "encoder": (build_encoder(config), 0.15),
            "codec": (build_codec(config), 0.3),
            "pretrain": (build_unified(config), 0.5),
        }

    config = tiny_config(evaluation__batch_size=2, **overrides)
    return begin_run(config, workdir, modules, averaged)


def begin_run(
    config: ConfigDict,
    workdir: Path,
    modules: Callable[[ConfigDict], Mapping[str, tuple[Module, float]]],
    averaged: bool = False,
) -> Path:
    """A workdir of `config` with checkpoints of some stages.

    Args:
      modules: of the finished configuration: stage -> its module, and the scale of its random
        weights.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    masked = config.data.unconditional == "masked"
    own = with_token(tokenizer(), "no_mean") if masked else tokenizer()
    config.data.vocab_size = own.vocab_size
    config.data.tokenizer_fingerprint = own.fingerprint()
    adopt_autoencoder(config, workdir)
    (workdir / "config.json").write_text(to_json(config))
    own.save(workdir / "tokenizer")
    for seed, (stage, (module, scale)) in enumerate(modules(config).items(), start=1):
        train = {"step": 7}
        if averaged and stage == "pretrain":
            train["raw"] = lively(module, seed + 10, scale)
        with files.open_manager(workdir / stage / "checkpoints") as manager:
            files.save(manager, 7, lively(module, seed, scale), train, {"next_step": 7, "seed": 0})
            manager.wait_until_finished()
    return workdir
