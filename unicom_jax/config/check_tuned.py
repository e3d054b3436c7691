"""`unified.tuned_at` and `STAGE.tuned_steps`: settings tuned on a smaller or shorter run."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from unicom_jax.config.key import ConfigError
from unicom_jax.config.schema import KEYS, value_at
from unicom_jax.core.sizes import named_size

SIZES = ("width", "depth", "heads", "kv_heads", "mlp_dim", "hidden_dim")
NAMES = tuple(
    key.removeprefix("unified.")
    for key in KEYS
    if key.startswith("unified.") and key.rsplit(".", 1)[1] in SIZES
)
# The pathway that has a part; all of them have the transformer.
PATHWAY_OF = {
    "head": "transfusion",
    "connector": "query",
    "flow_decoder": "query",
    "cheers": "cheers",
    "uae": "uae",
}
# Heads without a head_dim of their own, and the width that they divide.
HEADS_OF = {
    "query": {
        "transformer.heads": "transformer.width",  # of the connector
        "flow_decoder.heads": "flow_decoder.width",
    },
    "cheers": {"cheers.semantics.heads": "transformer.width"},
}


def check_tuned(config: Mapping[str, Any]) -> None:
    """Refuses sizes that cannot be read, that this model has not or that no rule of rescaling
    covers, and a model whose output layer cannot be rescaled.

    Raises:
      ConfigError: names the entry and what it may be.
    """
    unified, sizes = config["unified"], {}
    for index, entry in enumerate(unified["tuned_at"]):
        name, size = _read(f"unified.tuned_at[{index}]={entry!r}", entry, unified)
        if name in sizes:
            raise ConfigError(f"unified.tuned_at gives {name} twice; leave one of them out")
        sizes[name] = size
    if sizes and unified["transformer"]["tied_head"]:
        raise ConfigError(
            "unified.tuned_at rescales the output layer, which unified.transformer.tied_head=True "
            "shares with the embedding; set tied_head=False"
        )
    own = {name: value_at(unified, name) for name in NAMES}
    tuned = {**own, **sizes}
    heads, kv_heads = tuned["transformer.heads"], tuned["transformer.kv_heads"]
    if heads % kv_heads:
        raise ConfigError(
            f"unified.tuned_at: the tuned model has transformer.heads={heads} and "
            f"transformer.kv_heads={kv_heads}, which does not divide them; give both"
        )
    for heads, width in HEADS_OF.get(unified["pathway"], {}).items():
        if tuned[width] * own[heads] != own[width] * tuned[heads]:
            raise ConfigError(
                f"unified.tuned_at: the tuned model has {width}={tuned[width]} and {heads}="
                f"{tuned[heads]}, so a head has other channels than with {own[width]} and "
                f"{own[heads]}, which no rule covers; give both in one ratio"
            )


def _read(key: str, entry: str, unified: Mapping[str, Any]) -> tuple[str, int]:
    """The name and the size that an entry gives."""
    name, size = named_size(entry)
    if name not in NAMES:
        near = get_close_matches(name, NAMES, n=1)
        raise ConfigError(
            f"{key} is not a size of the unified model; did you mean {near[0]}=...?"
            if near
            else f"{key} is not a size of the unified model, such as transformer.width=64"
        )
    if not size:
        raise ConfigError(f"{key}: give the size as a number above 0, {name}=64")
    part = name.split(".")[0]
    if PATHWAY_OF.get(part, unified["pathway"]) != unified["pathway"]:
        raise ConfigError(
            f"{key} does nothing with unified.pathway={unified['pathway']}, which has no "
            f"unified.{part}; leave it out"
        )
    kind = unified["head"]["kind"]
    if kind == "linear" and part == "head" or name == "head.depth" and kind != "adaln":
        raise ConfigError(f"{key} does nothing with unified.head.kind={kind}; leave it out")
    return name, size


def check_tuned_stage(stage: str, config: Mapping[str, Any]) -> None:
    """Refuses a stage whose optimiser or adapters no rule of rescaling covers.

    Raises:
      ConfigError: names the stage's key and what to change.
    """
    settings = config[stage]
    if settings.get("lora", {}).get("rank") and config["unified"]["tuned_at"]:
        raise ConfigError(
            f"{stage}.lora adapts some matrices and unified.tuned_at rescales whole ones; set "
            f"{stage}.lora.rank=0 or unified.tuned_at=()"
        )
    if not (tuned := settings["tuned_steps"]):
        return
    key = f"{stage}.tuned_steps={tuned}"
    if settings["optimizer"] == "muon":
        raise ConfigError(
            f"{key} with {stage}.optimizer=muon: the rule for longer training is known for adamw "
            "only; set tuned_steps=0 or optimizer=adamw"
        )
    shorter = tuned / settings["steps"]
    for name in ("b1", "b2"):
        if (forgets := (1 - settings[name]) * shorter) >= 1:
            raise ConfigError(
                f"{key} with {stage}.steps={settings['steps']}: 1 - {name} would become "
                f"{forgets:.3g}; a run can be less than {1 / (1 - settings[name]):.3g} times "
                "shorter than the tuned one"
            )
