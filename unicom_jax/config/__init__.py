"""Configurations: what is declared of each key (`schema`), files and overrides, checks."""

from unicom_jax.config.files import apply_overrides, from_json, load_config, resolve, to_json
from unicom_jax.config.key import ConfigError
from unicom_jax.config.schema import KEYS, STAGES, UNIFIED_STAGES, complete, defaults, values

__all__ = [
    "KEYS",
    "STAGES",
    "UNIFIED_STAGES",
    "ConfigError",
    "apply_overrides",
    "complete",
    "defaults",
    "from_json",
    "load_config",
    "resolve",
    "to_json",
    "values",
]
