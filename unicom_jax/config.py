"""Configurations: files with `get_config()`, dotted overrides, JSON; no wrong key passes."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


class ConfigError(Exception):
    """A configuration that cannot be used. One line that names the key and the mend."""


def load_config(path: str) -> ConfigDict:
    """Runs `get_config()` of a Python file.

    Raises:
      ConfigError: the file is missing, does not run, or has no `get_config`.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError(f"--config={path}: no such file; see experiments/ for the ones that ship")
    spec = importlib.util.spec_from_file_location(f"unicom_config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = module.get_config
    except AttributeError as error:
        raise ConfigError(f"--config={path}: {error}; define `def get_config():` in it") from error
    except Exception as error:
        raise ConfigError(f"--config={path} fails: {type(error).__name__}: {error}") from error
    return get_config()


def dotted_keys(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    """All keys that hold a value, as `codec.decoder.width`."""
    for key, value in config.items():
        if isinstance(value, ConfigDict) and len(value):
            yield from dotted_keys(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def apply_overrides(config: ConfigDict, overrides: Iterable[str]) -> None:
    """Sets `--config.a.b=value` flags in place.

    Values are Python literals where they parse as one, else strings; the default gives the type.

    Raises:
      ConfigError: not of that form, an unknown key (the nearest known one is named), a wrong type.
    """
    known = list(dotted_keys(config))
    for flag in overrides:
        name, separator, text = flag.partition("=")
        key = name.removeprefix("--config.")
        if not flag.startswith("--config.") or not separator:
            raise ConfigError(f"{flag!r} is not understood; overrides look like --config.seed=1")
        _set(config, key, _literal(text), known)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text, text)


def _set(config: ConfigDict, key: str, value: Any, known: list[str]) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
        inside = [name for name in known if name.startswith(f"{key}.")]
        hint = f"it is a group; set one of {', '.join(inside[:4])}" if inside else ""
        hint = hint or (f"did you mean --config.{near[0]}?" if near else "see experiments/base.py")
        raise ConfigError(f"--config.{key}: unknown key; {hint}")
    *path, last = key.split(".")
    node = config
    for part in path:
        node = node[part]
    old = node[last]
    if isinstance(old, bool) != isinstance(value, bool):
        raise ConfigError(f"--config.{key}={value!r}: expects {type(old).__name__} like {old!r}")
    if isinstance(old, float) and isinstance(value, int):
        value = float(value)
    if isinstance(old, tuple) and isinstance(value, list | str):
        value = tuple(value) if isinstance(value, list) else (value,)
    if not isinstance(value, type(old)):
        raise ConfigError(
            f"--config.{key}={value!r} is {type(value).__name__}; expects {type(old).__name__} "
            f"like {old!r}"
        )
    node[last] = value


def to_json(config: ConfigDict) -> str:
    """The configuration as indented JSON; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2, default=list)


def resolve(path: str, overrides: Iterable[str]) -> ConfigDict:
    """A configuration file with its overrides."""
    config = load_config(path)
    apply_overrides(config, overrides)
    return config


def from_json(stored: dict[str, Any]) -> ConfigDict:
    """A configuration from what `to_json` wrote; lists become tuples again."""
    return ConfigDict(_tuples(stored))


def _tuples(tree: Any) -> Any:
    """JSON knows lists only; configurations use tuples."""
    if isinstance(tree, dict):
        return {key: _tuples(value) for key, value in tree.items()}
    return tuple(_tuples(value) for value in tree) if isinstance(tree, list) else tree
