"""Run-time check of the shapes that signatures promise: the checker of `tests/conftest.py`'s hook.

The hook, `jaxtyping.install_import_hook`, hands each function of the annotated packages to
`checked`. The letters of one call (B, S, ...) have to agree over its arguments, its result, and the
fields of the batches, masks and caches among them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from beartype import BeartypeConf, beartype
from beartype.door import is_bearable
from jaxtyping import TypeCheckError, jaxtyped

CONF = BeartypeConf(is_pep484_tower=True)  # an int may stand for a float


def jaxtyped_if_shaped(*given: Any, **options: Any) -> Any:
    """`jaxtyping.jaxtyped`, as decorator for those functions alone whose signatures name shapes.

    The hook decorates every function, a local one each time that it is made. Without shapes there
    is nothing to check, and binding the arguments of each call took a sixth of the tests' time.
    """
    decorate = jaxtyped(*given, **options)
    if given:
        return decorate
    return lambda thing: decorate(thing) if _is_shaped(thing) else thing


def _is_shaped(thing: Any) -> bool:
    if inspect.isfunction(thing):
        key = thing.__module__, thing.__code__  # one for all functions that a line makes
        if key not in _SHAPED:
            hints = {name: _resolved(h, thing) for name, h in thing.__annotations__.items()}
            _SHAPED[key] = hints.get("return", Any) is not Any and _names_shapes(
                thing.__name__, hints
            )
        return _SHAPED[key]
    # Of a class, jaxtyping wraps the `__init__` that `checked` leaves alone.
    return not inspect.isclass(thing)


_SHAPED: dict[tuple[str, types.CodeType], bool] = {}


def _resolved(hint: Any, function: Callable) -> Any:
    """What an annotation stands for. As in jaxtyping, anything where a name is not known yet."""

    def takes(value): ...

    takes.__annotations__["value"] = hint
    try:
        return typing.get_type_hints(takes, function.__globals__, include_extras=True)["value"]
    except (AttributeError, NameError):  # jaxtyping fails on `...` with the former
        return Any


def checked(function: Callable) -> Callable:
    """`function`, which checks the shapes of what it is called with; itself if it names none.

    jaxtyping makes two empty functions of each signature: one to check the arguments before the
    call, and one that is given the result too, by keyword, to check all together after the call.
    Only the latter is used, so where our own code finds a shape wrong, its one-line ValueError is
    raised as without the hook. jaxtyping's message always speaks of the return value; the cause
    under it says which argument it was.
    """
    hints = function.__annotations__
    before_the_call = hints.get("return", Any) is Any
    if before_the_call or not _names_shapes(function.__name__, hints):
        return function

    @functools.cache
    def check() -> Callable:  # at the first call: there are many functions
        return beartype(conf=CONF)(function)

    signature = inspect.signature(function)
    *_, result = (p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        call = signature.bind(*args, **kwargs)
        for name, value in call.arguments.items():
            call.arguments[name] = _as_hinted(value, hints["return" if name == result else name])
        out = check()(*call.args, **call.kwargs)
        seen: set[type] = set()
        for value in (*call.arguments.values(), *(out if isinstance(out, tuple) else ())):
            _check_fields(value, seen)
        return out

    return run


def _as_hinted(value: Any, hint: Any) -> Any:
    """NumPy's array as one of JAX where that is expected, in a tuple too: JAX takes both."""
    parts = typing.get_args(hint)
    if type(value) is tuple and len(value) == len(parts):
        return tuple(map(_as_hinted, value, parts))
    of_numpy = isinstance(value, np.ndarray | np.generic)
    return jnp.asarray(value) if of_numpy and "Array" in repr(hint) else value


def _names_shapes(name: str, hints: dict[str, Any]) -> bool:
    """Whether a signature names shapes to check after a call; `hints` says what it returns."""
    # Containers are also built around placements, specs and other leaves than arrays.
    return name != "__init__" and any(map(_named, hints.values()))


def _named(hint: Any) -> bool:
    """Whether shapes are named in an annotation, or in a field of a class in it."""
    if inspect.isclass(hint) and dataclasses.is_dataclass(hint):
        return bool(_fields(hint))
    return "jaxtyping." in repr(hint) or any(map(_named, typing.get_args(hint)))


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    """The fields of a dataclass in which shapes are named.

    A `Document` of the data pipelines has none: it holds the mask of one row, without an axis B.
    """
    if kind.__module__.startswith("data_pipelines."):
        return {}
    hints = typing.get_type_hints(kind)
    return {f.name: hints[f.name] for f in dataclasses.fields(kind) if _named(hints[f.name])}


def _check_fields(value: Any, seen: set[type]) -> None:
    """Raises where a field is not as declared. `seen`: what containers the call had before.

    A second one of a kind has letters of its own: a batch and the mask of slots behind it.
    """
    kind = type(value)
    if not dataclasses.is_dataclass(kind) or not (hints := _fields(kind)):
        return
    with jaxtyped("context") if kind in seen else contextlib.nullcontext():
        seen.add(kind)
        for name, hint in hints.items():
            field = _as_hinted(getattr(value, name), hint)
            if not is_bearable(field, hint, conf=CONF):
                found = getattr(field, "shape", type(field)), getattr(field, "dtype", None)
                raise TypeCheckError(f"{kind.__name__}.{name} is {found}, not {hint}")
            _check_fields(field, seen)
