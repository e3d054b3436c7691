"""What a mesh requires of a stage's settings; all other checks are in `config.check`."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

from unicom_jax.config import ConfigError
from unicom_jax.families.build import family_of
from unicom_jax.families.painters import decoder_group
from unicom_jax.runs.stages import spec_of

Config = Mapping[str, Any]


def check_on_mesh(stage: str, config: Config, sizes: Mapping[str, int]) -> None:
    """Checks a stage's settings against a mesh of these sizes.

    Raises:
      ConfigError: the length of rows does not divide over the mesh's `context` axis, or the heads
        of a trained part over the `tensor` axis, so that each device would compute all of them.
    """
    slots, parts = config[stage].get("sequence_length", 0), sizes.get("context", 1)
    if slots % parts:
        raise ConfigError(
            f"{stage}.sequence_length={slots} does not divide over context={parts} of the mesh; "
            "make it a multiple, or give the devices to another axis"
        )
    tensor = sizes.get("tensor", 1)
    for key, heads in _attention_heads(stage, config).items():
        if heads % tensor and _is_trained(stage, key):
            best = max(n for n in range(1, tensor) if heads % n == 0 and tensor % n == 0)
            raise ConfigError(
                f"{key}={heads} does not divide over tensor={tensor} of the mesh, so every device "
                f"would compute all heads; set tensor={best} there, or change the number of heads"
            )


def copies_on_mesh(stage: str, config: Config, sizes: Mapping[str, int]) -> list[str]:
    """One line for each part of a stage that the mesh's `tensor` axis does not divide. The run is
    possible, but every device of the axis computes or stores all of that part."""
    tensor = sizes.get("tensor", 1)
    own = {
        key: (heads, "each device computes all heads of this part")
        for key, heads in _attention_heads(stage, config).items()
        if not _is_trained(stage, key)
    }
    part = spec_of(stage).part
    if part == "unified":
        kv_heads = config["unified"]["transformer"]["kv_heads"]
        own["unified.transformer.kv_heads"] = (kv_heads, "key heads are kept in copies")
    if part in ("encoder", "unified"):
        vocabulary = config["data"]["vocab_size"]
        own["data.vocab_size"] = (vocabulary, "each device keeps the table and computes all logits")
    return [
        f"{stage}: {key}={size} does not divide over tensor={tensor} of the mesh: {what}"
        + ("; set data.padded_vocab_size to a multiple" if key == "data.vocab_size" else "")
        for key, (size, what) in own.items()
        if size % tensor
    ]


def _is_trained(stage: str, key: str) -> bool:
    return key.split(".")[0] == spec_of(stage).part


def _attention_heads(stage: str, config: Config) -> dict[str, int]:
    """Configuration key -> heads, for every attention over many slots that a stage runs."""
    heads = {"encoder.vision.heads": config["encoder"]["vision"]["heads"]}
    part = spec_of(stage).part
    return heads | (HEADS[part](config) if part in HEADS else {})


def _decoder_heads(config: Config) -> dict[str, int]:
    return _heads_at(config, f"{decoder_group(config)}.heads")


def _unified_heads(config: Config) -> dict[str, int]:
    return _heads_at(config, "unified.transformer.heads", *family_of(config).heads)


def _heads_at(config: Config, *keys: str) -> dict[str, int]:
    return {key: functools.reduce(operator.getitem, key.split("."), config) for key in keys}


# By part: its heads, besides those of the vision tower.
HEADS: dict[str, Callable[[Config], dict[str, int]]] = {
    "encoder": lambda config: {"encoder.text.heads": config["encoder"]["text"]["heads"]},
    "codec": _decoder_heads,
    "unified": _unified_heads,
}
