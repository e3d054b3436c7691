"""The configuration that a workdir holds: stored, completed for this version, compared."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from unicom_jax.config import ConfigError, apply_overrides, from_json, load_config, to_json
from unicom_jax.runs.stages import STAGES

# Beginnings of keys that a run fills in at its start, from its tokenizer and its autoencoder.
FILLED_IN = ("data.vocab_size", "data.tokenizer_fingerprint", "codec.autoencoder.facts")
# Keys that older runs lack, and what those did.
LATER = {
    "stage_seeds": False,
    "data.source.held_out": 0.0,
    "data.source.eval_split": "",
    "data.source.image": "image",
    "data.source.captions": "",
    "data.scenes.jitter": 0.025,
    "data.max_unreadable": 0.1,  # older runs had no bound
    "data.packed": "",
    "codec.autoencoder.path": "",
    "unified.transformer.embedding_std": 0.02,
    "unified.transformer.unroll": 1,
    "sample.guidance_interval": [0.0, 1.0],  # a list, as JSON has it
    "evaluation.think": False,
    "evaluation.shown": 12,
    "codec.autoencoder.facts": {},
    **{f"{part}.init_from": "" for part in ("encoder", "codec", "codec.decoder", "unified")},
    "codec.decoder.kind": "dit",
    "codec.decoder.prediction": "data",
    "codec.decoder.rope_theta": 100.0,
    "codec.decoder.flux": {  # not used by that kind
        "channels": 64,
        "double_depth": 2,
        "single_depth": 4,
        "heads": 6,
        "head_dim": 32,
        "context_dim": 192,
        "pooled_dim": 32,
        "guidance_embeds": False,
        "guidance": 1.0,
        "rope_dims": [4, 14, 14],
        "remat": "none",
        "attention_backend": "dense",
    },
}
# The same for the settings of every stage, and of those that train on packed rows.
LATER_IN_STAGES = {
    "offload_optimizer": False,
    "keep_best": 0,
    "spike_factor": 0.0,
    "max_rollbacks": 0,
}
LATER_ON_ROWS = {"init_from": "", "noisy_copies": 1, "mixture.questions": 0.0}
MAY_CHANGE = (
    *("steps", "save_every", "eval_every", "log_every", "keep", "keep_every", "keep_best"),
    *("max_rollbacks", "stages"),
    # How and where batches are made and moments lie, which does not change them.
    *("mesh", "workers", "threads", "prefetch", "cache_mb", "max_unreadable", "packed"),
    "offload_optimizer",
)


def open_run(workdir: Path, path: str | None, overrides: Iterable[str]) -> ConfigDict:
    """The configuration of a run that starts or goes on in `workdir`, stored there as config.json.

    A run that goes on keeps its configuration: only how long and how often may change.

    Raises:
      ConfigError: no configuration given and none stored, or one that contradicts the stored one.
    """
    stored_path = workdir / "config.json"
    stored = _read_stored(stored_path) if stored_path.is_file() else None
    if path is None and stored is None:
        raise ConfigError(f"{workdir} holds no run yet; give --config=experiments/quickstart.py")
    config = from_json(stored) if path is None else load_config(path)
    if stored is not None:
        config.stage_seeds = stored["stage_seeds"]  # a run keeps the rule that it began with
    apply_overrides(config, overrides)
    if stored is not None:
        _check_same(json.loads(to_json(config)), stored, workdir)
        config.data.tokenizer_fingerprint = stored["data"].get("tokenizer_fingerprint", "")
    return config


def complete(stored: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration with the keys that came after it, set to what it did without them."""
    stored = copy.deepcopy(stored)
    later = dict(LATER)
    for name, spec in STAGES.items():
        of_stage = LATER_IN_STAGES | (LATER_ON_ROWS if spec.loader == "rows" else {})
        if name in stored:
            later |= {f"{name}.{key}": value for key, value in of_stage.items()}
    for key, value in later.items():
        *groups, name = key.split(".")
        place = stored
        for group in groups:
            place = place.setdefault(group, {})
        place.setdefault(name, copy.copy(value))
    return stored


def _read_stored(path: Path) -> dict[str, Any]:
    try:
        return complete(json.loads(path.read_text()))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON ({error}); restore it from a copy") from error


def _check_same(new: dict[str, Any], stored: dict[str, Any], workdir: Path) -> None:
    old_flat, new_flat = flatten_dict(stored, sep="."), flatten_dict(new, sep=".")
    for key in sorted(old_flat.keys() | new_flat.keys()):
        old, now = old_flat.get(key), new_flat.get(key)
        group = key.split(".")[0]
        free = key.split(".")[-1] in MAY_CHANGE or group in ("sample", "evaluation")
        if old != now and not free and not key.startswith(FILLED_IN):
            raise ConfigError(
                f"{workdir} was started with {key}={old!r}, now it is {now!r}; use the old value "
                "or another --workdir"
            )
