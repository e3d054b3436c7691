"""The smaller model whose settings a larger one takes over."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Mapping
from typing import Any

from unicom_jax.core.sizes import named_size


def tuned_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with the sizes of `unified.tuned_at`, which `config.check_tuned` checks."""
    unified = copy.deepcopy({**config["unified"], "tuned_at": ()})
    for entry in config["unified"]["tuned_at"]:
        name, size = named_size(entry)
        *groups, last = name.split(".")
        functools.reduce(operator.getitem, groups, unified)[last] = size
    return {**config, "unified": unified}
