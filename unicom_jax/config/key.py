"""What is declared of one configuration key, and the check of a value against it."""

from __future__ import annotations

import ast
import copy
import dataclasses
import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

# What may happen to a key when a run resumes.
NEUTRAL = "neutral"  # may always change: it does not change what is learned
RECORDED = "recorded"  # with --allow-change; the change is kept in the run's history
STRUCTURAL = "structural"  # refused once a stage that depends on it has started

ALWAYS = object()  # `Key.before` of a key that every stored run has
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
STORES = ("gs", "s3")  # object stores, which are read and written
READABLE = (*STORES, "hf")  # and what can only be read
KINDS = {
    bool: "True or False (bool)",
    int: "a whole number (int)",
    float: "a number (float)",
    str: "text (str)",
    tuple: "a tuple",
    dict: "a dict",
}


class ConfigError(Exception):
    """A configuration that cannot be used. One line that names the key and the remedy."""


@dataclasses.dataclass(frozen=True)
class Key:
    """The one declaration of a key. Its type is that of the default; an int does for a float.

    Attributes:
      meaning: one sentence, shown by `unicom config explain` and in docs/keys.md.
      least, most: closed bounds of a number, or of each number of a tuple.
      above, below: open bounds.
      choices: all that a text (or each item of a tuple) may be; of a dict: its keys, whose values
        are numbers.
      length: of a tuple; None: any.
      item: type of the items of a tuple; None: that of the default's first one.
      commas: of a tuple of texts: commas separate them on the command line, and are part of none.
      path: a file or folder, on this machine (`~` is the home directory) or in an object store.
      resume: NEUTRAL, RECORDED or STRUCTURAL.
      switch: turning it on or off (between 0 and another value) is structural all the same,
        because a checkpoint holds other things then.
      filled_in: a run sets it at its start.
      before: what runs did that were stored before the key existed.
      fields: of a tuple whose items are tables: the keys of such a table.
      required: of a field: a table without it is refused.
    """

    default: Any
    meaning: str
    _: dataclasses.KW_ONLY
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Collection[Any] = ()
    length: int | None = None
    item: type | None = None
    commas: bool = False
    path: bool = False
    resume: str = STRUCTURAL
    switch: bool = False
    filled_in: bool = False
    before: Any = ALWAYS
    fields: Mapping[str, Key] | None = None
    required: bool = False

    @property
    def kind(self) -> type:
        return type(self.default)

    @property
    def item_kind(self) -> type | None:
        """The type of a tuple's items; None where it has none."""
        return self.item or (type(self.default[0]) if self.default else None)

    def allowed(self) -> str:
        """What the value may be, in words; "" where every value of its type will do."""
        if self.choices:
            between = " or " if len(self.choices) == 2 else ", "
            return between.join(str(choice) for choice in self.choices)
        bounds = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        words = [f"{word} {bound}" for word, bound in bounds.items() if bound is not None]
        return " and ".join(words)


@dataclasses.dataclass(frozen=True)
class Group:
    """Keys that stand together under one name."""

    meaning: str
    keys: Mapping[str, Key | Group]


def each(keys: Mapping[str, Key], **same: Any) -> dict[str, Key]:
    """`keys` with some attributes that all of them share."""
    return {name: dataclasses.replace(key, **same) for name, key in keys.items()}


def flatten(keys: Mapping[str, Key | Group], prefix: str = "") -> dict[str, Key]:
    """{dotted name: key} of all keys, in the order in which they are declared."""
    flat: dict[str, Key] = {}
    for name, entry in keys.items():
        if isinstance(entry, Group):
            flat |= flatten(entry.keys, f"{prefix}{name}.")
        else:
            flat[prefix + name] = entry
    return flat


# ---- values ------------------------------------------------------------------------------------


def parse(name: str, key: Key, text: str) -> Any:
    """The value that `--config.NAME=TEXT` stands for; the type of the key decides how it is read.

    Raises:
      ConfigError: no value of that type.
    """
    if key.kind is str:
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        value = _literal(text) if quoted else text
        return value if isinstance(value, str) else text
    value = _literal(text)
    if key.kind in (tuple, dict) and isinstance(value, str):
        separate = (key.choices or key.commas) and "," in value
        return tuple(part.strip() for part in value.split(",")) if separate else (value,)
    if key.kind is float and value in ("inf", "nan", "-inf"):
        return float(value)
    return value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False}.get(text, text)


def checked(name: str, key: Key, value: Any) -> Any:
    """`value` in the type of its key, e.g. 1e5 as 100000 where that is a whole number.

    Raises:
      ConfigError: of another type, or out of range; it says what would do.
    """
    if key.kind is dict:
        return _checked_shares(name, key, value) if key.choices else value
    if key.fields:
        return _checked_tables(name, key, value)
    if key.kind is tuple:
        return _checked_tuple(name, key, value)
    if key.kind is str and key.path:
        value = checked_path(name, value, stores=READABLE)
    return _checked_item(name, key, key.kind, value, value)


def _checked_tables(name: str, key: Key, value: Any) -> tuple[dict[str, Any], ...]:
    """Each item with all of the key's fields."""
    items = tuple(value) if isinstance(value, list | tuple) else (value,)
    return tuple(_checked_table(f"{name}[{i}]", key, item) for i, item in enumerate(items))


def _checked_table(name: str, key: Key, table: Any) -> dict[str, Any]:
    fields = key.fields or {}
    table = table.to_dict() if isinstance(table, ConfigDict) else table
    if not isinstance(table, Mapping):
        raise ConfigError(f"{name}={table!r}: expects a dict of {', '.join(fields)}")
    for field in table:
        if field not in fields:
            near = _similar(str(field), list(fields), 0.6)
            meant = f"did you mean {name}.{near}?" if near else f"choose {', '.join(fields)}"
            raise ConfigError(f"unknown key {name}.{field}; {meant}")
    if lacking := [field for field in fields if fields[field].required and field not in table]:
        raise ConfigError(
            f"{name} lacks {lacking[0]!r}; give it, one of {fields[lacking[0]].allowed()}"
        )
    return {
        field: checked(f"{name}.{field}", key, table.get(field, copy.copy(key.default)))
        for field, key in fields.items()
    }


def _checked_shares(name: str, key: Key, value: Any) -> dict[str, float]:
    """A dict of numbers; one name, or a tuple of names, stands for equal numbers."""
    if isinstance(value, Mapping):
        shares = dict(value)
    else:
        shares = dict.fromkeys(value if isinstance(value, list | tuple) else (value,), 1.0)
    for choice, share in shares.items():
        if choice not in key.choices:
            near = _similar(str(choice), list(key.choices), 0.6)
            meant = f"did you mean {near!r}?" if near else f"choose {key.allowed()}"
            raise ConfigError(f"{name}: {choice!r} is unknown; {meant}")
        number = dataclasses.replace(key, default=0.0, choices=())
        shares[choice] = _checked_item(f"{name}[{choice!r}]", number, float, share, share)
    if shares and not any(shares.values()):
        raise ConfigError(f"{name}={value!r} is 0 for all; give one of them a share, or give {{}}")
    return dict(sorted(shares.items()))  # in whatever order they were written


def _checked_tuple(name: str, key: Key, value: Any) -> tuple[Any, ...]:
    items = tuple(value) if isinstance(value, list | tuple) else (value,)
    if key.length is not None and len(items) != key.length:
        raise ConfigError(f"{name}={value!r}: give {key.length} values, like {key.default!r}")
    if key.item_kind is None:
        return items
    return tuple(_checked_item(name, key, key.item_kind, item, value) for item in items)


def _checked_item(name: str, key: Key, kind: type, item: Any, value: Any) -> Any:
    whole = isinstance(item, float) and item.is_integer()
    if kind is float and isinstance(item, int) and not isinstance(item, bool):
        item = float(item)
    elif kind is int and whole:
        item = int(item)
    elif kind is tuple and isinstance(item, list):
        item = tuple(item)
    if isinstance(item, bool) != (kind is bool) or not isinstance(item, kind):
        like = f", like {key.default!r}" if key.default not in ("", ()) else ""
        raise ConfigError(f"{name}={value!r}: expects {KINDS[key.kind]}{like}")
    if key.choices and item not in key.choices:
        raise ConfigError(f"{name}={value!r} is unknown; choose {key.allowed()}")
    if isinstance(item, float) and not math.isfinite(item):
        raise ConfigError(f"{name}={value}: give a finite number")
    if isinstance(item, int | float) and not _within(key, item):
        raise ConfigError(f"{name}={value!r}: give {key.allowed()}")
    return item


def _within(key: Key, value: float) -> bool:
    return (
        (key.least is None or value >= key.least)
        and (key.most is None or value <= key.most)
        and (key.above is None or value > key.above)
        and (key.below is None or value < key.below)
    )


def checked_path(
    name: str, text: str, *, empty: bool = True, stores: Collection[str] = READABLE
) -> str:
    """A path on this machine, with `~` written out, or an address in an object store.

    Args:
      name: the key or flag that gives it.
      empty: whether "" may stand for none.
      stores: which it may be in, of `READABLE`.

    Raises:
      ConfigError: another address, or nothing where something is needed.
    """
    if not isinstance(text, str):
        return text
    if not text.strip() and not empty:
        raise ConfigError(f"{name} is empty; give a path")
    if address := SCHEME.match(text):
        if address[1] in stores and text[address.end() :].strip("/"):
            return text.rstrip("/")
        also = f" and in {', '.join(f'{one}://' for one in stores)}" if stores else " alone"
        raise ConfigError(
            f"{name}={text}: only paths on file systems{also} can be used here; copy it to a disk, "
            "or mount it there, and give that path"
        )
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError as error:
        if Path(text).exists():  # no user's home but the name of a folder
            return str(Path(text).absolute())
        raise ConfigError(f"{name}={text}: {error}; write the path out") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """The known key that `name` most likely meant: in its own group, else anywhere; "": none."""
    known = list(known)
    group, _, last = name.rpartition(".")
    inside = [key for key in known if key.rpartition(".")[0] == group]
    if inside and (found := _similar(last, [key.rpartition(".")[2] for key in inside], 0.6)):
        return f"{group}.{found}" if group else found
    if found := _similar(last, [key.rpartition(".")[2] for key in known], 0.75):
        same = [key for key in known if key.rpartition(".")[2] == found]
        return max(same, key=lambda key: (-key.count("."), _likeness(name, key)))
    return "" if inside else _similar(name, known, 0.6)


def _likeness(name: str, key: str) -> float:
    return difflib.SequenceMatcher(None, name, key).ratio()


def _similar(name: str, names: list[str], cutoff: float) -> str:
    return next(iter(difflib.get_close_matches(name, names, n=1, cutoff=cutoff)), "")
