"""Compiled programs that take their random key as an argument."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Seeded:
    """A jitted function whose first argument is the data of a random key, with that data.

    A key that is part of a program makes each seed compile a program of its own. As an argument it
    does not, so the compilation cache serves all seeds of a sweep.

    Attributes:
      jitted: (key data, *arguments) -> result.
      key_data: that of `jax.random.key_data`; a NumPy array, which every process of a mesh may
        pass.
    """

    jitted: Any
    key_data: np.ndarray

    def __call__(self, *args: Any) -> Any:
        return self.jitted(self.key_data, *args)

    def lower(self, *args: Any) -> jax.stages.Lowered:
        return self.jitted.lower(self.key_data, *args)

    def compilations(self) -> int:
        """How many programs have been compiled for the shapes seen so far."""
        return self.jitted._cache_size()
