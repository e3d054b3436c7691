"""Configuration files with `get_config()`, dotted overrides, and JSON; no wrong key passes."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from unicom_jax.config.key import KINDS, ConfigError, checked, nearest, parse
from unicom_jax.config.schema import (
    FIELD,
    GROUPS,
    KEYS,
    TABLES,
    declared,
    group_of,
    value_at,
    values,
)

SHIPPED = "unicom_jax.experiments"  # where a wheel has them, see setup.py


def resolve(path: str, overrides: Iterable[str]) -> ConfigDict:
    """A configuration file with its overrides."""
    config = load_config(path)
    apply_overrides(config, overrides)
    return config


# ---- files -------------------------------------------------------------------------------------


def load_config(path: str) -> ConfigDict:
    """Runs `get_config()` of a Python file. The file may import modules from its own folder.

    Raises:
      ConfigError: the file is missing, does not run, has no `get_config`, or sets a key or a value
        that does not exist. It names the file and, where there is one, the line.
    """
    if not Path(path).is_file():
        raise ConfigError(f"--config={path}: no such file; see experiments/ for the ones that ship")
    config = call_in_file(path, "get_config")
    if not isinstance(config, ConfigDict):
        raise ConfigError(
            f"{path}: get_config() returns {type(config).__name__}; return the ConfigDict that "
            "experiments.base.get_config() gives"
        )
    try:
        check_values(config)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return config.lock()


def call_in_file(path: str, function: str) -> Any:
    """What a function without arguments of a Python file returns.

    Raises:
      ConfigError: the file does not run or has no such function. It names the file and, where there
        is one, the line.
    """
    file = Path(path)
    if file.suffix != ".py":
        raise ConfigError(
            f"{path} is not a Python file; give one that ends in .py and defines {function}()"
        )
    try:
        with _module(file) as module:
            if not hasattr(module, function):
                raise ConfigError(f"{path} has no {function}; define `def {function}():` in it")
            return getattr(module, function)()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(failure(file, error)) from error


def failure(file: Path, error: Exception | SystemExit) -> str:
    """What is wrong with the code of a configuration file, and where; one line."""
    return f"{_place(file, error)}: {_reason(error)}"


@contextlib.contextmanager
def _module(file: Path) -> Iterator[ModuleType]:
    """The module of a file, run with its folder first on the import path."""
    name = f"unicom_config_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    folder = str(file.resolve().parent)
    sys.path.insert(0, folder)
    sys.modules[name] = module  # dataclasses look their module up there
    try:
        with _experiments():
            spec.loader.exec_module(module)
            yield module
    finally:
        sys.path.remove(folder)


@contextlib.contextmanager
def _experiments() -> Iterator[None]:
    """`from experiments import base` works with a wheel, too, which has it under our name."""
    found = importlib.util.find_spec("experiments")
    if (found is not None and found.origin) or importlib.util.find_spec(SHIPPED) is None:
        yield
        return
    sys.modules["experiments"] = importlib.import_module(SHIPPED)
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "experiments"]:
            del sys.modules[name]


def _place(file: Path, error: BaseException) -> str:
    """`FILE, line N` of the user's code that raised."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}"
    folder = file.resolve().parent
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        where = Path(frame.filename).resolve()
        if where.parent == folder and "site-packages" not in where.parts:
            return f"{frame.filename}, line {frame.lineno}"
    return str(file)


def _reason(error: Exception | SystemExit) -> str:
    """What is wrong, in one line; for an access to a configuration with the key's whole name."""
    if isinstance(error, SyntaxError):
        return error.msg
    access = _failed_access(error)
    if access is None:
        text = str(error).splitlines()[0] if str(error) else ""
        return f"{type(error).__name__}: {text}"
    name, value = access
    value = value.to_dict() if isinstance(value, ConfigDict) else value
    if name not in KEYS:
        return f"{'' if group_of(name) else 'unknown key '}{name}: {hint(name)}"
    try:
        checked(name, KEYS[name], value)
    except ConfigError as reason:
        return str(reason)
    return f"{name}={value!r}: expects {KINDS[KEYS[name].kind]}, like {KEYS[name].default!r}"


def _failed_access(error: Exception | SystemExit) -> tuple[str, Any] | None:
    """The dotted name (and value) that a ConfigDict refused; None for any other error."""
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(error.__traceback__)]
    roots = [
        value
        for names in frames
        for value in names.values()
        if isinstance(value, ConfigDict) and "stages" in value and "data" in value
    ]
    inner = frames[-1]
    node, key = inner.get("self"), inner.get("key", inner.get("attribute"))
    if not isinstance(node, ConfigDict) or not isinstance(key, str):
        return None
    for root in roots:
        for group in ("", *_groups(root)):
            if _at(root, group) is node:
                return f"{group}.{key}".removeprefix("."), inner.get("value")
    return key, inner.get("value")


def _groups(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield f"{prefix}{name}"
            yield from _groups(value, f"{prefix}{name}.")


def _at(config: ConfigDict, name: str) -> Any:
    return value_at(config, name) if name else config


def hint(name: str, prefix: str = "") -> str:
    """What to write in place of a key that does not exist, with `prefix` before keys."""
    if group := group_of(name):
        inside = ", ".join(f"{prefix}{name}.{key}" for key in list(group.keys)[:4])
        return f"it is a group; set one of {inside}"
    near, group = nearest(name, (*KEYS, *GROUPS)), name.rpartition(".")[0]
    if near:
        return f"did you mean {prefix}{near}?"
    inside = f" {group}" if group and group_of(group) else ""
    return f"`unicom config explain{inside}` lists the keys"


def check_values(config: ConfigDict) -> None:
    """Looks at every key of a configuration by itself and puts its value into its type.

    Raises:
      ConfigError: a key that does not exist, is missing, or has a value out of range.
    """
    given = dict(values(config))
    for name, value in given.items():
        if name not in KEYS:
            raise ConfigError(f"unknown key {name}: {hint(name)}")
        new = checked(name, KEYS[name], value)
        if new is not value:
            _put(config, name, new)
    if missing := [name for name in KEYS if name not in given]:
        raise ConfigError(
            f"the key {missing[0]} is missing; start from experiments.base.get_config(), and "
            "change a group by .update({...}) instead of replacing it"
        )


# ---- overrides ---------------------------------------------------------------------------------


def apply_overrides(config: ConfigDict, overrides: Iterable[str]) -> None:
    """Sets `--config.a.b=value` flags in place. The key's type says how a value is read.

    Raises:
      ConfigError: not of that form, an unknown key (the nearest known one is named), a wrong type,
        or a value out of range.
    """
    for flag in overrides:
        name, separator, text = flag.partition("=")
        key = name.removeprefix("--config.")
        if not flag.startswith("--config.") or not separator:
            raise ConfigError(f"{flag!r} is not understood; overrides look like --config.seed=1")
        if (match := FIELD.fullmatch(key)) and match["index"] and match["table"] in TABLES:
            _put_field(config, match["table"], int(match["index"]), match["field"], text)
            continue
        if key not in KEYS:
            raise ConfigError(
                f"--config.{key}: {'' if group_of(key) else 'unknown key; '}"
                f"{hint(key, '--config.')}"
            )
        _put(config, key, checked(name, KEYS[key], parse(name, KEYS[key], text)))


def set_values(config: ConfigDict, changes: Mapping[str, Any]) -> None:
    """Sets values by dotted key in place.

    Raises:
      ConfigError: an unknown key (the nearest known one is named), a wrong type, or a value out of
        range.
    """
    for name, value in changes.items():
        if name not in KEYS:
            raise ConfigError(f"{'' if group_of(name) else 'unknown key '}{name}: {hint(name)}")
        _put(config, name, checked(name, KEYS[name], value))


def _put_field(config: ConfigDict, table: str, index: int, field: str, text: str) -> None:
    """One field of one item of a tuple of tables."""
    items, name = list(value_at(config, table)), f"{table}[{index}].{field}"
    if index >= len(items):
        raise ConfigError(f"--config.{name}: {table} has {len(items)} items, counted from 0")
    key = declared(name)
    value = text if key is None else parse(name, key, text)
    items[index] = {**items[index], field: value}
    _put(config, table, checked(table, KEYS[table], items))


def _put(config: ConfigDict, name: str, value: Any) -> None:
    group, _, last = name.rpartition(".")
    _at(config, group)[last] = value


# ---- JSON --------------------------------------------------------------------------------------


def to_json(config: ConfigDict) -> str:
    """The configuration as indented JSON; tuples become lists."""
    return json.dumps(config.to_dict(), indent=2, default=list)


def from_json(stored: Mapping[str, Any]) -> ConfigDict:
    """A configuration from what `to_json` wrote; lists become tuples again."""
    return ConfigDict(_tuples(stored)).lock()


def _tuples(tree: Any) -> Any:
    """JSON knows lists only; configurations use tuples."""
    if isinstance(tree, Mapping):
        return {key: _tuples(value) for key, value in tree.items()}
    return tuple(_tuples(value) for value in tree) if isinstance(tree, list) else tree
