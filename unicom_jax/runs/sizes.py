"""Whether a folder of released weights has the sizes of a configuration, and which keys to set."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unicom_jax.config import ConfigError
from unicom_jax.core.module import Module
from unicom_jax.models.autoencoder import AutoencoderKLFlux2
from unicom_jax.models.transformer import Transformer
from unicom_jax.models.vision_encoder import VisionEncoder

# Fields that say how a module computes or starts, not which weights it has.
COMPUTE = (
    *("remat", "unroll", "attention_backend", "attention_block", "dtype", "embedding_std"),
    "logit_softcap",
)


def _differences(ours: Module, theirs: Module) -> dict[str, Any]:
    """The fields of `theirs` that differ from ours."""
    names = [field.name for field in dataclasses.fields(theirs) if field.name not in COMPUTE]
    return {
        name: getattr(theirs, name)
        for name in names
        if getattr(ours, name) != getattr(theirs, name)
    }


def is_same(ours: Module, theirs: Module) -> bool:
    return not _differences(ours, theirs)


def check_same(
    ours: Module,
    theirs: Module,
    keys: Mapping[str, str],
    key: str,
    given: str | Path,
    factors: Mapping[str, int] | None = None,
) -> None:
    """Raises ConfigError, naming all keys to set, if a folder's model is not the config's.

    Args:
      keys: {field: the configuration key that sets it}.
      factors: {field: factor from the field's value to the key's}.
    """
    if not (found := _differences(ours, theirs)):
        return
    if not (named := [name for name in keys if name in found]):
        name = next(iter(found))
        raise ConfigError(
            f"{key}={given} has {name}={found[name]!r}, the model here {getattr(ours, name)!r}, "
            "and no key changes this; use another checkpoint"
        )
    there = ", ".join(f"{name}={found[name]!r}" for name in named)
    here = ", ".join(repr(getattr(ours, name)) for name in named)
    flags = []
    for name in named:
        factor = (factors or {}).get(name, 1)
        value = found[name] if factor == 1 else found[name] * factor
        flags.append(f"--config.{keys[name]}={value}")
    raise ConfigError(f"{key}={given} has {there}, the config {here}; set {' '.join(flags)}")


def check_vision(ours: VisionEncoder, theirs: VisionEncoder, key: str, given: str | Path) -> None:
    """`check_same` for image towers."""
    keys = {
        "naflex": "encoder.naflex",
        "patch_size": "data.patch",
        **{name: f"encoder.vision.{name}" for name in ("width", "depth", "heads", "mlp_dim")},
    }
    if not ours.naflex:
        keys["position_rows"] = "data.image_size"
    check_same(ours, theirs, keys, key, given, factors={"position_rows": ours.patch_size})


def check_autoencoder(
    ours: AutoencoderKLFlux2, theirs: AutoencoderKLFlux2, key: str, given: str | Path
) -> None:
    """`check_same` for autoencoders."""
    names = ("latent_channels", "widths", "resnets", "quant_conv")
    keys = {name: f"autoencoder.{name}" for name in names}
    keys |= {"groups": "autoencoder.norm_groups", "side": "data.patch"}
    check_same(ours, theirs, keys, key, given, factors={"side": theirs.factor})


def check_transformer(
    names: Iterable[str], ours: Transformer, theirs: Transformer, key: str, given: str | Path
) -> None:
    """`check_same` for transformers, except that ours may have a larger vocabulary.

    `names`: the keys of `unified.transformer`.
    """
    keys = {name: f"unified.transformer.{name}" for name in names}
    same_size = dataclasses.replace(theirs, vocab_size=ours.vocab_size)
    check_same(ours, same_size, keys, key, given)
    if theirs.vocab_size > ours.vocab_size:
        raise ConfigError(
            f"{key}={given} has {theirs.vocab_size} rows of vocabulary, the model "
            f"{ours.vocab_size}; set --config.data.padded_vocab_size={theirs.vocab_size}"
        )
