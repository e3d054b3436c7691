"""Transfers weights between a folder of safetensors and our trees, with one table for both ways."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from unicom_jax.core.module import Params, Specs, fill_specs, iter_specs
from unicom_jax.interop.explain import explain_extra, explain_shape, explain_type, quantised
from unicom_jax.interop.mapping import Place, Table, places
from unicom_jax.interop.tensors import (
    DTYPES,
    TensorFolder,
    WeightsError,
    write_tensors,
)

Index = tuple[slice, ...]
# On CPU, JAX uses NumPy memory that begins at a multiple of this directly, and copies any other.
ALIGNMENT = 64


# ---- checks -----------------------------------------------------------------------------------


def check_facts(
    tensors: TensorFolder,
    wanted: Mapping[str, Place],
    *,
    spare: Sequence[str] = (),
    twins: Mapping[str, str] | None = None,
    hints: Mapping[str, str] | None = None,
) -> None:
    """Compares the names, shapes and types of a folder with those of a model; reads no values.

    Args:
      wanted: every foreign tensor of the model.
      spare: prefixes of names of tensors that may exist and are not read.
      twins: tensors that may be stored a second time: {name: the one it equals}.
      hints: what to add to the message if a tensor is missing.

    Raises:
      WeightsError: tensors are missing, left over or not as expected; it names the first ones.
    """
    there, twins = tensors.facts, twins or {}
    extra = sorted(
        name
        for name in there.keys() - wanted.keys() - twins.keys()
        if not name.startswith(tuple(spare))
    )
    if name := quantised(extra):
        raise WeightsError(f"{tensors.path}: {name} {explain_extra(name)}")
    if missing := sorted(wanted.keys() - there.keys()):
        known = dict.fromkeys((hints or {})[name] for name in missing if name in (hints or {}))
        hint = "".join(f" ({one})" for one in known)
        raise WeightsError(
            f"{tensors.path} lacks {_some(missing)}; it is incomplete or belongs to another "
            f"model{hint}"
        )
    if extra:
        others = f" (and {len(extra) - 1} more tensors)" if len(extra) > 1 else ""
        raise WeightsError(f"{tensors.path}: {extra[0]}{others} {explain_extra(extra[0])}")
    for name in (*wanted, *(twin for twin in twins if twin in there)):
        fact, shape = there[name], wanted[twins.get(name, name)].shape
        if fact.dtype not in DTYPES:
            raise WeightsError(f"{fact.shard}: {name} has type {fact.dtype}; {explain_type(fact)}")
        if fact.shape != shape:
            raise WeightsError(
                f"{fact.shard}: {name} has shape {fact.shape}, the config asks for {shape}; "
                f"{explain_shape(name, fact.shape, shape)}"
            )


def check_values(
    tensors: TensorFolder, wanted: Mapping[str, Place], twins: Mapping[str, str] | None = None
) -> None:
    """Checks tensors that are not kept: those that have to be zero, and second copies of others.

    Raises:
      WeightsError: a tensor is not zero, or differs from its twin.
    """
    for name, place in wanted.items():
        if not place.rule.paths and np.any(tensors.read(name)):
            raise WeightsError(
                f"{tensors.facts[name].shard}: {name} is not zero, but the model does not have "
                "it; use weights in which it was not trained"
            )
    for name, other in (twins or {}).items():
        if name in tensors.facts and not _equal(tensors, name, other):
            raise WeightsError(
                f"{tensors.facts[name].shard}: {name} differs from {other}, but its config.json "
                "says that they are one; correct it there"
            )


def _equal(tensors: TensorFolder, name: str, other: str) -> bool:
    pairs = zip(row_chunks(tensors, name), row_chunks(tensors, other), strict=True)
    return all(np.array_equal(one, two) for one, two in pairs)


def row_chunks(tensors: TensorFolder, name: str, rows: int = 4096) -> Iterator[np.ndarray]:
    """A tensor in pieces along its first axis."""
    count = tensors.facts[name].shape[0]
    for start in range(0, count, rows):
        yield tensors.read(name, (slice(start, min(start + rows, count)),))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more tensors"


# ---- in ---------------------------------------------------------------------------------------


def load_weights(
    tensors: TensorFolder,
    table: Table,
    specs: Specs,
    *,
    shardings: Params | None = None,
    dtype: Any = None,
    spare: Sequence[str] = (),
    twins: Mapping[str, str] | None = None,
    hints: Mapping[str, str] | None = None,
    arrived: Callable[[int], None] = lambda nbytes: None,
) -> Params:
    """Reads a model weight by weight, each directly into its shards.

    All names, shapes and types are checked before any value is read. Only the parts of foreign
    tensors that a device of this process needs are read. Besides the model, the host never holds
    more than one shard of one weight; on CPU it becomes the weight without a copy.

    Args:
      tensors: an opened folder.
      table: rules for the weights of `specs`.
      shardings: a tree like `specs`, of shardings; None: the default device.
      dtype: the type of all weights; None: those of `specs`.
      spare, twins, hints: see `check_facts`.
      arrived: called with the size of each weight that has been read.

    Raises:
      WeightsError: the folder is damaged, or holds another model or values that are not finite.
    """
    wanted = places(table, specs)
    check_facts(tensors, wanted, spare=spare, twins=twins, hints=hints)
    check_values(tensors, wanted, twins)
    by_path = _by_path(wanted)
    located = traverse_util.flatten_dict(shardings, sep="/") if shardings else {}
    default = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    weights = {}
    for path, spec in iter_specs(specs):
        name = "/".join(path)
        kind = np.dtype(dtype or spec.dtype)

        def part(index: Index, parts=by_path[name], kind=kind, name=name) -> np.ndarray:
            return _read_part(tensors, parts, index, kind, name)

        weights[path] = place_parts(spec.shape, located.get(name, default), part)
        arrived(weights[path].nbytes)
    return fill_specs(specs, weights)


def place_parts(
    shape: tuple[int, ...],
    sharding: jax.sharding.Sharding,
    part: Callable[[Index], np.ndarray],
) -> jax.Array:
    """An array whose shards come from `part(index)`, called once for all devices with the same
    shard."""
    holders: dict[tuple, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(one.indices(n)[:2] for one, n in zip(index, shape, strict=True))
        holders.setdefault(bounds, []).append(device)
    shards = {}
    for bounds, devices in holders.items():
        host = part(tuple(slice(*bound) for bound in bounds))
        for device in devices:
            shards[device] = jax.device_put(host, device, may_alias=True)
        jax.block_until_ready(list(shards.values()))  # then the host's buffer can be freed
    ordered = [shards[device] for device in sharding.addressable_devices]
    return jax.make_array_from_single_device_arrays(shape, sharding, ordered)


def _by_path(wanted: Mapping[str, Place]) -> dict[str, list[tuple[str, Place]]]:
    """The foreign tensors that hold parts of each of our weights."""
    found: dict[str, list[tuple[str, Place]]] = {}
    for name, place in wanted.items():
        for path in place.rule.paths:
            found.setdefault(path, []).append((name, place))
    return found


def _read_part(
    tensors: TensorFolder,
    parts: Iterable[tuple[str, Place]],
    index: Index,
    dtype: np.dtype,
    path: str,
) -> np.ndarray:
    """The part `index` of one of our weights, read layer by layer."""
    host = aligned_empty([one.stop - one.start for one in index], dtype)
    for name, place in parts:
        read = partial(tensors.read_finite, name)
        if place.layer is None:
            host[...] = place.read(path, index, read)
        elif index[0].start <= place.layer < index[0].stop:
            host[place.layer - index[0].start] = place.read(path, index[1:], read)
    return host


def aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array that JAX can use on CPU without a copy."""
    nbytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes].view(dtype).reshape(shape)


# ---- out --------------------------------------------------------------------------------------


def store_weights(
    folder: Path,
    table: Table,
    specs: Specs,
    params: Params,
    *,
    dtype: str = "F32",
    kept: tuple[str, ...] = (),
    stem: str = "model",
    shard_bytes: int = 5 * 10**9,
    written: Callable[[int], None] = lambda nbytes: None,
) -> None:
    """Writes `params` under the names of the table, one foreign tensor in memory at a time.

    Values are cast to `dtype`, rounded to nearest if it has fewer bits; values that were read in
    this type are written unchanged. Tensors whose names begin with one of `kept` are written in
    F32. `written` is called with the size of each tensor. Wrap the call in
    `interop.atomic.new_folder`.
    """
    wanted = places(table, specs)
    ours = traverse_util.flatten_dict(params, sep="/")

    wider = {name: DTYPES["F32"] for name in wanted if kept and name.startswith(kept)}

    def tensor(name: str) -> np.ndarray:
        made = wanted[name].join(lambda path, layer: _on_host(ours[path], layer))
        written(made.size * wider.get(name, DTYPES[dtype]).itemsize)
        return made

    shapes = {name: place.shape for name, place in wanted.items()}
    write_tensors(
        folder, shapes, tensor, DTYPES[dtype], wider=wider, stem=stem, shard_bytes=shard_bytes
    )


def _on_host(weight: Any, layer: int | None) -> np.ndarray:
    """A weight, or a layer of it, on the host, without leaving a copy in a JAX array.

    `np.asarray` would cache one there, unless the array is already in host memory.
    """
    if isinstance(weight, np.ndarray) or _lies_on_host(weight):
        host = np.asarray(weight)
        return host if layer is None else host[layer]
    return np.asarray(jnp.copy(weight) if layer is None else weight[layer])


def _lies_on_host(weight: jax.Array) -> bool:
    return len(weight.devices()) == 1 and next(iter(weight.devices())).platform == "cpu"
