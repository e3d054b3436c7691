"""Reads the config.json of a foreign folder, and checks that ours supports it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicom_jax.config import ConfigError
from unicom_jax.core.paths import is_remote

DESCRIPTION = "config.json"


def read_description(folder: Path) -> dict[str, Any]:
    """The config.json of `folder`.

    Raises:
      ConfigError: it is missing or not a JSON object.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise ConfigError(f"{path} is missing; {_where_else(folder)}")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); restore it from a copy") from error


def _where_else(folder: Path) -> str:
    """What to give instead of a folder that has no config.json."""
    if is_remote(folder):
        return "give a folder that holds it beside the weights"
    if folder.is_file():
        return f"give the folder {folder.parent}"
    if not folder.exists():
        return f"there is no folder {folder}; a name on the Hub is downloaded first: hf download"
    if found := sorted(folder.glob("snapshots/*/" + DESCRIPTION)):
        return f"this is a cache of the Hub: give {found[-1].parent}"
    return "give a folder that holds it beside the weights"


def read_fields(
    config: Mapping[str, Any], fields: Mapping[str, tuple[str, Any]], path: Path
) -> dict[str, Any]:
    """Our fields from `{ours: (their key, the value if it is absent or null)}`.

    Raises:
      ConfigError: a value has another type (boolean, number, text or list) than the default.
    """
    found = {}
    for ours, (key, default) in fields.items():
        value = config.get(key)
        found[ours] = default if value is None else value
        if _kind(found[ours]) != _kind(default):
            raise ConfigError(f"{path}: {key} is {value!r}; it has to be like {default!r}")
        if _kind(default) == (int, float) and default > 0 >= found[ours]:
            raise ConfigError(f"{path}: {key} is {value!r}; it has to be above 0, like {default!r}")
    return found


def _kind(value: Any) -> Any:
    kinds = (bool, (int, float), str, (list, tuple))  # bool first: it is an int too
    return next((kind for kind in kinds if isinstance(value, kind)), None)


def check_fixed(
    config: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], path: Path, remedy: str
) -> None:
    """Refuses values that ours does not support.

    Args:
      fixed: the values allowed for each key; the first is also the default if it is absent.
      remedy: what to do instead; ends the message.

    Raises:
      ConfigError: a key has another value.
    """
    for key, allowed in fixed.items():
        found = config.get(key, allowed[0])
        if found not in allowed:
            raise ConfigError(
                f"{path}: {key} is {found!r}, but only {allowed[0]!r} is supported; {remedy}"
            )
