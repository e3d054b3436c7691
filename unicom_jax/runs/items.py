"""One item of a checkpoint on disk, as `params`: what it holds, and reading a part of it."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import traverse_util

from unicom_jax.core.module import Params

READ_AT_ONCE = 256 * 2**20  # bytes of weights


class CheckpointError(Exception):
    """A checkpoint that is missing or damaged. One line that names the path and the fix."""


def metadata(path: Path) -> Params:
    """Shapes of all that an item holds."""
    try:
        with _reader() as reader:
            return reader.metadata(epath.Path(path)).tree
    except Exception as error:  # as in `checkpoint.restore`
        raise damaged(path, error) from error


def read_part(path: Path, wanted: Params, on_host: bool = False) -> Params:
    """Reads what `wanted` names of one item, to its shardings, the first device, or the host.

    Orbax reads into host memory and copies from there. Large weights are read one by one and before
    the small ones, while memory holds both copies: the peak is about the model's size.
    """
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    flat = traverse_util.flatten_dict(wanted)
    read: dict[tuple[str, ...], jax.Array] = {}
    for group in _groups(flat):
        located = {}
        for name in group:
            leaf = flat[name]
            place = leaf.sharding if leaf.sharding is not None else device
            located[name] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
        tree = traverse_util.unflatten_dict(located)
        how = (
            jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            if on_host
            else ocp.checkpoint_utils.construct_restore_args(tree)
        )
        request = ocp.args.PyTreeRestore(tree, restore_args=how, partial_restore=True)
        try:
            with _reader() as reader:
                part = jax.block_until_ready(reader.restore(epath.Path(path), args=request))
        except Exception as error:  # as in `checkpoint.restore`
            raise damaged(path, error) from error
        read |= traverse_util.flatten_dict(part)
    return jax.tree_util.tree_map_with_path(
        lambda name, _: read[tuple(key.key for key in name)], wanted
    )


def _groups(leaves: Mapping[tuple[str, ...], jax.ShapeDtypeStruct]) -> list[list[tuple[str, ...]]]:
    """Names in groups of at most `READ_AT_ONCE` bytes, or of one weight, the largest first."""
    sizes = {name: math.prod(leaf.shape) * leaf.dtype.itemsize for name, leaf in leaves.items()}
    groups, filled = [], READ_AT_ONCE
    for name in sorted(sizes, key=sizes.__getitem__, reverse=True):
        if filled + sizes[name] > READ_AT_ONCE:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += sizes[name]
    return groups


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for an item at `path` that Orbax cannot read."""
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else repr(error)
    return CheckpointError(
        f"checkpoint {path} cannot be read ({type(error).__name__}: {reason}); delete the "
        f"folder {path.parent} to fall back to the step before, or restore it from a copy"
    )


def _reader() -> contextlib.closing[ocp.PyTreeCheckpointHandler]:
    """Reads one item without writing anything: the folder may be somebody else's.

    Orbax's managers and checkpointers expect a whole step and would warn about the other items.
    This is the only handler that can read a part of an item.
    """
    return contextlib.closing(ocp.PyTreeCheckpointHandler())
