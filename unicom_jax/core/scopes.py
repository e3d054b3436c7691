"""Names of a model's modules in its compiled programs.

XLA records the scopes of every operation, forward and backward, so a profile and `unicom plan` can
say which module an operation belongs to.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

P, R = ParamSpec("P"), TypeVar("R")
_PREFIX = "module."  # tells our scopes from those that JAX and libraries open


def in_module(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: marks all that the function traces as part of the module `name`."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            with jax.named_scope(f"{_PREFIX}{name}"):
                return function(*args, **kwargs)

        return run

    return decorate


def module_of(source: str) -> str:
    """The outermost module in an operation's path of scopes; "" if there is none.

    Under differentiation a scope is part of a call: "transpose(jvp(module.decoder))".
    """
    found = re.search(rf"{re.escape(_PREFIX)}(\w+)", source)
    return found[1] if found else ""
