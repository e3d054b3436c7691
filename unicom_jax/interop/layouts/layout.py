"""The table of all foreign layouts, which all reading and writing uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unicom_jax.core.module import Module
from unicom_jax.interop.layouts import (
    autoencoder,
    cheers,
    flux,
    mmdit,
    projection,
    qwen,
    qwen_vl,
    siglip,
)
from unicom_jax.interop.mapping import Table
from unicom_jax.interop.tensors import INDEX_FIRST


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a foreign library stores a model in a folder.

    Attributes:
      table: rules for all weights of a module.
      describe: the config.json of a module.
      module_of: the module that a config.json at a path describes; raises ConfigError if ours does
        not support it.
      stem: beginning of the file names, see `interop.tensors`.
      prefixes: possible prefixes of all names, of which a folder uses one; we write the first.
      spare: prefixes of names of tensors that may exist and are not read.
      twins: tensors that may be stored a second time: {name: the one it has to equal}.
      hints: what to add to the message if a tensor is missing.
      new_name: the current name of a tensor, from its name in files of older versions.
      derived: tables that may be stored but follow from config.json: {end of the name: values}.
    """

    table: Callable[[Module], Table]
    describe: Callable[[Module], dict[str, Any]]
    module_of: Callable[[Mapping[str, Any], Path], Module]
    stem: str = "model"
    prefixes: Callable[[Module], tuple[str, ...]] = lambda module: ("",)
    spare: Callable[[Module], tuple[str, ...]] = lambda module: ()
    twins: Callable[[Module], Mapping[str, str]] = lambda module: {}
    hints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    new_name: Callable[[str], str] = lambda name: name
    derived: Callable[[Module], Mapping[str, np.ndarray]] = lambda module: {}


DIFFUSERS = INDEX_FIRST

LAYOUTS: dict[str, Layout] = {
    "siglip": Layout(
        siglip.table,
        siglip.describe,
        siglip.module_of,
        prefixes=siglip.prefixes,
        spare=siglip.spare,
    ),
    "qwen": Layout(
        qwen.table,
        qwen.describe,
        qwen.module_of,
        twins=qwen.twins,
        hints=qwen.HINTS,
        derived=qwen.derived,
    ),
    "qwen_vl": Layout(
        qwen_vl.table,
        qwen_vl.describe,
        qwen_vl.module_of,
        spare=qwen_vl.spare,
        twins=qwen_vl.twins,
        hints=qwen.HINTS,
        new_name=qwen_vl.new_name,
        derived=qwen_vl.derived,
    ),
    "projection": Layout(projection.table, projection.describe, projection.module_of),
    "autoencoder": Layout(
        autoencoder.table,
        autoencoder.describe,
        autoencoder.module_of,
        stem=DIFFUSERS,
        spare=autoencoder.spare,
        hints=autoencoder.HINTS,
        new_name=autoencoder.new_name,
    ),
    "cheers": Layout(
        cheers.table,
        cheers.describe,
        cheers.module_of,
        spare=cheers.spare,
        twins=cheers.twins,
        hints=cheers.HINTS,
    ),
    "flux": Layout(flux.table, flux.describe, flux.module_of, stem=DIFFUSERS),
    "sd3": Layout(mmdit.table, mmdit.describe, mmdit.module_of, stem=DIFFUSERS),
}
