"""`unified.tuned_at`: the sizes of the smaller model whose settings a larger one takes over."""

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
