"""Foreign folders by layout: describes, checks, reads and writes the model that a folder holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from unicom_jax.config import ConfigError
from unicom_jax.core.module import Module, Params
from unicom_jax.interop.atomic import new_folder
from unicom_jax.interop.layouts.description import DESCRIPTION, read_description
from unicom_jax.interop.layouts.layout import Layout
from unicom_jax.interop.mapping import Table, places, prefixed
from unicom_jax.interop.tensors import DTYPES, TensorFact, TensorFolder, open_tensors
from unicom_jax.interop.transfer import check_facts, load_weights, store_weights


def module_in(folder: Path, layout: Layout) -> Module:
    """The module that the config.json of `folder` describes.

    Raises:
      ConfigError: there is none, or it describes a model that ours does not support.
    """
    path = folder / DESCRIPTION
    config = read_description(folder)
    try:
        module = layout.module_of(config, path)
        module.specs()  # its layers, too, check that the sizes are consistent
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"{path}: {error}; restore it from a copy") from error
    return module


def check_model(folder: Path, layout: Layout, module: Module) -> dict[str, TensorFact]:
    """The tensors of `folder` from which `module` is read, according to the headers alone.

    Raises:
      WeightsError: the folder is damaged or holds another model.
    """
    return _checked(folder, layout, module)[0]


def check_numbers(folder: Path, layout: Layout, module: Module) -> None:
    """Reads all tensors of `module` once to check them, and keeps none.

    Raises:
      WeightsError: as `check_model`; a tensor holds NaN or infinite values.
    """
    facts, tensors = _checked(folder, layout, module)
    for name in facts:
        tensors.read_finite(name)


def _checked(
    folder: Path, layout: Layout, module: Module
) -> tuple[dict[str, TensorFact], TensorFolder]:
    tensors, table = _named(folder, layout, module)
    wanted = places(table, module.specs())
    check_facts(tensors, wanted, **_allowances(layout, module))
    return {name: tensors.facts[name] for name in wanted}, tensors


def read_model(
    folder: Path,
    layout: Layout,
    module: Module,
    *,
    shardings: Params | None = None,
    dtype: Any = None,
    arrived: Callable[[int], None] = lambda nbytes: None,
) -> Params:
    """The weights of `module` from `folder`; arguments and errors as for `transfer.load_weights`.

    `module` is the result of `module_in`, or a part of it for which the layout has a table (such as
    the image tower of a model with both towers).
    """
    tensors, table = _named(folder, layout, module)
    return load_weights(
        tensors,
        table,
        module.specs(),
        shardings=shardings,
        dtype=dtype,
        arrived=arrived,
        **_allowances(layout, module),
    )


def write_model(
    target: Path,
    layout: Layout,
    module: Module,
    params: Params,
    **options: Any,
) -> None:
    """As `fill_folder` with its `options`, but atomically: a complete folder or none.

    Raises:
      FileExistsError: `target` holds something already.
    """
    with new_folder(target) as folder:
        fill_folder(folder, layout, module, params, **options)


def fill_folder(
    folder: Path,
    layout: Layout,
    module: Module,
    params: Params,
    *,
    dtype: str = "F32",
    shard_bytes: int = 5 * 10**9,
    about: Mapping[str, Any] | None = None,
    written: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Writes config.json and the weights of `module` into a folder that exists.

    Args:
      about: more entries of config.json.
      dtype, shard_bytes, written: see `transfer.store_weights`.
    """
    description = {**layout.describe(module), **(about or {})}
    text = json.dumps(description, indent=2, default=list) + "\n"
    (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    store_weights(
        folder,
        layout.table(module),
        module.specs(),
        params,
        dtype=dtype,
        stem=layout.stem,
        shard_bytes=shard_bytes,
        written=written,
    )


def _allowances(layout: Layout, module: Module) -> dict[str, Any]:
    return {
        "spare": layout.spare(module),
        "twins": layout.twins(module),
        "hints": layout.hints,
    }


def _named(folder: Path, layout: Layout, module: Module) -> tuple[TensorFolder, Table]:
    """The folder's headers, and the table with the prefix that its names have."""
    tensors = open_tensors(folder, layout.stem).renamed(layout.new_name)
    table = layout.table(module)
    names = places(table, module.specs())

    def found(prefix: str) -> int:
        return sum(prefix + name in tensors.facts for name in names)

    prefix = max(layout.prefixes(module), key=found)
    return _without_derived(tensors, layout.derived(module)), prefixed(table, theirs=prefix)


def _without_derived(tensors: TensorFolder, derived: Mapping[str, np.ndarray]) -> TensorFolder:
    """Leaves out stored tables that equal what follows from config.json; others are kept."""
    kept = dict(tensors.facts)
    for ending, expected in derived.items():
        for name, fact in tensors.facts.items():
            if name.endswith(ending) and fact.shape == expected.shape and fact.dtype in DTYPES:
                found = tensors.read(name).astype(np.float64)
                if np.allclose(found, expected, rtol=1e-2, atol=0.0):  # bfloat16 has 8 bits
                    del kept[name]
    return dataclasses.replace(tensors, facts=kept)
