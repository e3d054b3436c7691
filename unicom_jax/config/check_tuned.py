"""`unified.tuned_at` and `STAGE.tuned_steps`: settings tuned on a smaller or shorter run."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from unicom_jax.config.key import ConfigError
from unicom_jax.config.schema import KEYS

SIZES = ("width", "depth", "heads", "kv_heads", "mlp_dim", "hidden_dim")
NAMES = tuple(
    key.removeprefix("unified.")
    for key in KEYS
    if key.startswith("unified.") and key.rsplit(".", 1)[1] in SIZES
)


def check_tuned(config: Mapping[str, Any]) -> None:
    """Refuses sizes that cannot be read, and a model whose output layer cannot be rescaled.

    Raises:
      ConfigError: names the entry and what it may be.
    """
    given = config["unified"]["tuned_at"]
    for index, entry in enumerate(given):
        key, (name, _, size) = f"unified.tuned_at[{index}]={entry!r}", entry.partition("=")
        if name not in NAMES:
            near = get_close_matches(name, NAMES, n=1)
            raise ConfigError(
                f"{key} is not a size of the unified model; did you mean {near[0]}=...?"
                if near
                else f"{key} is not a size of the unified model, such as transformer.width=64"
            )
        if not size.isdecimal() or int(size) < 1:
            raise ConfigError(f"{key}: give the size as a number above 0, {name}=64")
    if given and config["unified"]["transformer"]["tied_head"]:
        raise ConfigError(
            "unified.tuned_at rescales the output layer, which unified.transformer.tied_head=True "
            "shares with the embedding; set tied_head=False"
        )
    sizes = dict(entry.split("=") for entry in given)
    heads, kv_heads = (
        int(sizes.get(f"transformer.{name}", config["unified"]["transformer"][name]))
        for name in ("heads", "kv_heads")
    )
    if heads % kv_heads:
        raise ConfigError(
            f"unified.tuned_at: the tuned model has transformer.heads={heads} and "
            f"transformer.kv_heads={kv_heads}, which does not divide them; give both"
        )


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
