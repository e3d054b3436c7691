"""Weights between a folder of safetensors and our trees, by one table for both directions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from unicom_jax.core.module import Params, Specs, iter_specs
from unicom_jax.interop.mapping import Place, Table, places
from unicom_jax.interop.tensors import (
    DTYPES,
    TensorFolder,
    WeightsError,
    open_tensors,
    write_tensors,
)


def load_weights(
    folder: Path,
    table: Table,
    specs: Specs,
    *,
    stem: str = "model",
    shardings: Params | None = None,
    unused: Iterable[str] = (),
) -> Params:
    """Reads a model tensor by tensor, straight to where its weights belong.

    Everything is checked before anything is read: names, shapes, types.

    Args:
      table: rules for the weights of `specs`.
      stem: see `interop.tensors`.
      shardings: a tree like `specs`, of shardings; None: the default device.
      unused: foreign tensors that may be there and are not wanted.

    Raises:
      WeightsError: the folder is damaged or holds another model.
    """
    wanted = places(table, specs)
    with open_tensors(folder, stem) as tensors:
        check_facts(tensors, wanted, set(unused))
        weights = {}
        by_path = _by_path(wanted)
        located = traverse_util.flatten_dict(shardings, sep="/") if shardings else {}
        for path, spec in iter_specs(specs):
            name = "/".join(path)
            host = _read(tensors, by_path[name], spec.shape, np.dtype(spec.dtype), name)
            weights[path] = jax.device_put(host, located.get(name), may_alias=True)
        return traverse_util.unflatten_dict(weights)


def store_weights(
    folder: Path,
    table: Table,
    specs: Specs,
    params: Params,
    *,
    dtype: str = "F32",
    stem: str = "model",
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes `params` under the names of the table, one shard in memory at a time."""
    wanted = places(table, specs)
    ours = {path: np.asarray(leaf) for path, leaf in _flat(params).items()}
    write_tensors(
        folder,
        {name: place.shape for name, place in wanted.items()},
        lambda name: wanted[name].join(ours),
        DTYPES[dtype],
        stem=stem,
        shard_bytes=shard_bytes,
    )


def check_facts(tensors: TensorFolder, wanted: Mapping[str, Place], unused: set[str]) -> None:
    """Raises WeightsError for the first tensors that are missing, left over or not as expected."""
    there = tensors.facts
    if missing := sorted(wanted.keys() - there.keys()):
        raise WeightsError(
            f"{tensors.path} lacks {_some(missing)}; it is incomplete or of another model"
        )
    if extra := sorted(there.keys() - wanted.keys() - unused):
        raise WeightsError(
            f"{tensors.path} holds {_some(extra)}, for which the model has no place; "
            "check the sizes in its config.json"
        )
    for name, place in wanted.items():
        fact = there[name]
        if fact.shape != place.shape:
            raise WeightsError(
                f"{fact.shard}: {name} has shape {fact.shape}, the config asks for {place.shape}; "
                "check the sizes in its config.json"
            )
        if fact.dtype not in DTYPES:
            raise WeightsError(
                f"{fact.shard}: {name} has type {fact.dtype}; convert it to one of "
                f"{', '.join(DTYPES)}"
            )


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"


def _by_path(wanted: Mapping[str, Place]) -> dict[str, list[tuple[str, Place]]]:
    """The foreign tensors that hold parts of each of our weights."""
    found: dict[str, list[tuple[str, Place]]] = {}
    for name, place in wanted.items():
        for path in place.rule.paths:
            found.setdefault(path, []).append((name, place))
    return found


def _read(
    tensors: TensorFolder,
    parts: Iterable[tuple[str, Place]],
    shape: tuple[int, ...],
    dtype: np.dtype,
    path: str,
) -> np.ndarray:
    """One of our weights, filled layer by layer."""
    host = np.empty(shape, dtype)
    for name, place in parts:
        layer = dict(place.split(tensors.read(name)))[path]
        host[... if place.layer is None else place.layer] = layer
    return host


def _flat(params: Params) -> dict[str, Any]:
    return traverse_util.flatten_dict(params, sep="/")
