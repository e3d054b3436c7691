"""All defaults. Every configuration starts from them and changes some.

    config = base.get_config()
    config.unified.transformer.width = 512

The keys are declared in unicom_jax/config/keys, with their type, range and meaning; docs/keys.md
lists them, `unicom config explain KEY` shows one. Setting a key that is not declared is an error.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from unicom_jax.config import UNIFIED_STAGES, defaults
from unicom_jax.config.schema import stage_defaults

STAGES = ("encoder", "codec", *UNIFIED_STAGES)  # of the UniCom family


def training(**changes) -> ConfigDict:
    """The keys that every stage has: length, batches, optimiser, reports."""
    return stage_defaults("encoder", **changes)


def get_config() -> ConfigDict:
    return defaults()
