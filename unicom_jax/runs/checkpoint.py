"""Checkpoints on disk, for training (which writes them) and inference (which only reads them).

    WORKDIR/
      config.json            the whole configuration
      tokenizer/             Hugging Face layout
      STAGE/checkpoints/STEP/{params,train,position}

`params` holds the weights for inference (averages if EMA is on), `train` what only training needs
(optimizer state, raw weights), `position` the position in the data stream.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from unicom_jax.config import ConfigError
from unicom_jax.core import lora
from unicom_jax.core.module import Params
from unicom_jax.core.paths import as_path, copy_file, copy_tree, is_remote, remove_tree
from unicom_jax.runs import configuration
from unicom_jax.runs.items import CheckpointError, damaged, metadata, read_part
from unicom_jax.runs.retention import held_out_loss, preservation
from unicom_jax.runs.storage import S3, remove_half_written, take_folders_literally, teach_s3
from unicom_jax.runs.workdir import COMMITTED, CONFIG, read_json, stage_steps

take_folders_literally()
KNOWS_S3 = teach_s3()

PARAMS, TRAIN, POSITION = "params", "train", "position"
RAW = "raw"  # in `train`: the trained weights themselves, if `params` holds their averages
CHUNK_BYTES = 64 * 2**20  # pieces of a weight that are compressed and written separately


class OtherRunError(CheckpointError):
    """An intact checkpoint of another run (other sizes or seed): no reason to use an older one."""


def open_manager(
    directory: Path, *, save_every: int = 0, keep: int = 3, keep_every: int = 0, keep_best: int = 0
) -> ocp.CheckpointManager:
    """Orbax's manager of STAGE/checkpoints: atomic and asynchronous. Removes unfinished saves.

    `retention.preservation` decides which checkpoints are kept.

    Several processes are listed one by one, because Orbax then limits the time of its barriers and
    leaves creating the folder to us.
    """
    commitment = _commitment(directory)
    directory.mkdir(parents=True, exist_ok=True)
    remove_half_written(directory)
    everybody = set(range(jax.process_count())) if jax.process_count() > 1 else None
    kept = preservation(save_every, keep, keep_every, keep_best)
    options = ocp.CheckpointManagerOptions(
        preservation_policy=kept,
        best_fn=held_out_loss if keep_best else None,
        best_mode="min",
        create=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes=everybody),
        **commitment,
    )
    names = (PARAMS, TRAIN, POSITION)
    return ocp.CheckpointManager(directory.absolute(), options=options, item_names=names)


def _commitment(directory: Path) -> dict[str, Any]:
    """How a save is completed. Stores cannot rename, so there a file marks a complete save."""
    if str(directory).startswith(S3) and not KNOWS_S3:
        raise CheckpointError(
            f"{directory}: this version of Orbax cannot be taught to write to s3://; install "
            "orbax-checkpoint==0.12.8, or choose a workdir on a disk or in gs://"
        )
    if not is_remote(directory):
        return {}
    modes = ocp.options.AtomicityMode
    return {"atomicity_options": ocp.options.AtomicityOptions(mode=modes.COMMIT_FILE)}


def save(
    manager: ocp.CheckpointManager,
    step: int,
    params: Params,
    train: Any,
    position: Mapping,
    loss: float | None = None,
) -> None:
    """Starts an asynchronous save; the manager's `wait_until_finished` ends it.

    An existing checkpoint of this step is replaced: a resumed run reaches the step of a newer
    checkpoint only if that one could not be read.
    """
    items = {
        PARAMS: ocp.args.StandardSave(params, save_args=_in_chunks(params)),
        TRAIN: ocp.args.StandardSave(train),
        POSITION: ocp.args.JsonSave(dict(position)),
    }
    if step in manager.all_steps():
        manager.delete(step)
    measured = loss is not None and math.isfinite(loss)
    with contextlib.nullcontext() if measured else _without_warnings():
        manager.save(
            step,
            args=ocp.args.Composite(**items),
            metrics={"loss": loss} if measured else None,
            force=True,
        )


def save_import(directory: Path, params: Params) -> None:
    """Writes imported `params` as step 0 of STAGE/checkpoints, and waits.

    Parts that nobody reads may be missing. Training of the stage starts from these weights.
    Chunks are separate files: Orbax's OCDBT database, which training writes, keeps all uncommitted
    data in memory, as much as a second model.
    """
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    options = ocp.CheckpointManagerOptions(**_commitment(directory))
    manager = ocp.CheckpointManager(
        directory.absolute(), item_handlers={PARAMS: handler}, options=options
    )
    with contextlib.closing(manager), _without_warnings():
        request = ocp.args.PyTreeSave(params, save_args=_in_chunks(params))
        manager.save(0, args=ocp.args.Composite(**{PARAMS: request}))
        manager.wait_until_finished()


def _in_chunks(params: Params) -> Any:
    """Stores large weights in pieces, so that reading one needs no second copy of it."""
    return jax.tree.map(lambda _: ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES), params)


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hides Orbax's warnings that there is no OCDBT database or no loss: both are intended."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def is_import(directory: Path, step: int) -> bool:
    """Whether `save_import` wrote this step of STAGE/checkpoints."""
    return step == 0 and not (directory / "0" / TRAIN).exists()


def stored_keys(workdir: Path, stage: str) -> tuple[str, ...]:
    """The top-level keys of a stage's newest weights; imported ones may lack some."""
    step = chosen_step(workdir, stage)
    return tuple(metadata(workdir.absolute() / stage / "checkpoints" / str(step) / PARAMS))


def copy_step(source: Path, target: Path, item: str) -> None:
    """Copies one item of a checkpoint, from or into a store, as the step `target`."""
    remove_tree(target)
    if not is_remote(target):
        half = target.with_name("copying")
        remove_tree(half)
        _copy_step(source, half, item)
        half.rename(target)
        return
    _copy_step(source, target, item)
    for folder in (target / item, target):  # the step itself is marked complete last
        (folder / COMMITTED).write_text(f"copied from {source}", encoding="utf-8")


def _copy_step(source: Path, target: Path, item: str) -> None:
    copy_tree(source / item, target / item)
    for path in source.iterdir():
        if path.is_file() and path.name != COMMITTED:
            copy_file(path, target / path.name)


def restore(manager: ocp.CheckpointManager, step: int, item: str, abstract: Any) -> Any:
    """One item of one step, onto the shardings of `abstract`.

    Raises:
      CheckpointError: the checkpoint is damaged.
      OtherRunError: its weights differ from what the config describes.
    """
    path = as_path(manager.directory) / str(step) / item
    if item == PARAMS:
        _check_sizes(path, abstract)
    argument = ocp.args.JsonRestore() if abstract is None else ocp.args.StandardRestore(abstract)
    try:
        return manager.restore(step, args=ocp.args.Composite(**{item: argument}))[item]
    except Exception as error:  # Orbax raises many types here, which mean the same to a user
        raise damaged(path, error) from error


def _check_sizes(path: Path, abstract: Params, parts: Collection[str] | None = None) -> None:
    """Raises OtherRunError for the first weight that is not as the config describes it.

    Called before Orbax reads: with wrong shapes its readers fail noisily, on threads of their own.
    A checkpoint may lack top-level keys other than `parts` entirely, as imported ones do.
    """
    tree = metadata(path)
    if parts is not None:
        abstract = {key: node for key, node in abstract.items() if key in parts or key in tree}
    if missing := sorted(abstract.keys() - tree.keys()):
        raise OtherRunError(
            f"checkpoint {path} has no {', '.join(missing)}: it belongs to another model than the "
            "config describes, or it contains only the parts that later stages need (then leave "
            "its stage out of config.stages); use the config that it was trained with, or a new "
            "--workdir"
        )
    stored, wanted = (traverse_util.flatten_dict(one, sep="/") for one in (tree, abstract))
    for name in sorted(stored.keys() | wanted.keys()):
        there, here = (str(one[name].shape) if name in one else "none" for one in (stored, wanted))
        if there != here:
            raise OtherRunError(
                f"checkpoint {path} belongs to another model: the shape of {name} is {there} "
                f"there and {here} in the config; use the config it was trained with, or a new "
                "--workdir"
            )


def chosen_step(workdir: Path, stage: str, step: str = "") -> int:
    """The step of the stage's checkpoint that `step` selects.

    Args:
      step: a number; "best": the one with the lowest held-out loss; "": the newest.

    Raises:
      CheckpointError: there is none.
    """
    folder = workdir / stage / "checkpoints"
    steps = stage_steps(workdir, stage)
    if not steps:
        raise CheckpointError(
            f"no checkpoint under {folder}; run `unicom train` for stage {stage!r} first (with it "
            "in config.stages), import its weights, or point --checkpoint at the folder that holds "
            "config.json"
        )
    if not step:
        return steps[-1]
    if step.isdigit() and int(step) in steps:
        return int(step)
    losses = {n: path for n in steps if (path := folder / str(n) / "metrics/metrics").is_file()}
    if step == "best" and losses:
        return min(losses, key=lambda n: held_out_loss(read_json(losses[n], CheckpointError)))
    lacking = "with a held-out loss (train with keep_best)" if step == "best" else "of this step"
    raise CheckpointError(
        f"--step={step}: {folder} has none {lacking}; leave it out, or take one of "
        + ", ".join(map(str, steps))
    )


def restore_params(
    workdir: Path,
    stage: str,
    abstract: Params,
    parts: Collection[str] | None = None,
    *,
    step: str = "",
    raw: bool = False,
    on_host: bool = False,
    adapters: Callable[[Params], Params] = lora.merge,
) -> Params:
    """The weights of a stage for inference.

    Args:
      abstract: shapes, types and shardings of all weights of the stage.
      parts: the top-level keys to read; other weights are not read. None: all.
      step: see `chosen_step`.
      raw: read the weights as trained if those for inference are averages of them.
      on_host: return NumPy arrays, without the copy that a device makes of what Orbax has read.
      adapters: handles a stage's adapters, which `abstract` lacks: merges them into their kernels,
        drops them (`lora.base_weights`), or returns them with the kernels (`dict`).

    Raises:
      CheckpointError: the stage has no checkpoint, or it is damaged.
      OtherRunError: its weights differ from `abstract`, even in a part that is not read.
    """
    found = chosen_step(workdir, stage, step)
    path = workdir.absolute() / stage / "checkpoints" / str(found)
    dtypes = {name: leaf.dtype for name, leaf in traverse_util.flatten_dict(abstract).items()}
    abstract = _with_adapters(path / PARAMS, abstract)
    _check_sizes(path / PARAMS, abstract, parts)
    wanted = {key: abstract[key] for key in (abstract if parts is None else parts)}
    params = read_part(path / PARAMS, wanted, on_host)
    if raw and has_average(workdir, stage, found):
        flat = traverse_util.flatten_dict(wanted)
        trained = traverse_util.flatten_dict(metadata(path / TRAIN)[RAW])
        request = {name: leaf for name, leaf in flat.items() if name in trained}
        read = read_part(path / TRAIN, {RAW: traverse_util.unflatten_dict(request)}, on_host)[RAW]
        flat = traverse_util.flatten_dict(params) | traverse_util.flatten_dict(read)
        params = traverse_util.unflatten_dict(flat)
    flat = traverse_util.flatten_dict(adapters(params), keep_empty_nodes=True)
    for name in dtypes.keys() & flat.keys():
        if flat[name].dtype != dtypes[name]:
            flat[name] = flat[name].astype(dtypes[name])
    return traverse_util.unflatten_dict(flat)


def _with_adapters(path: Path, abstract: Params) -> Params:
    """`abstract` with the stored adapters, replicated on the devices of their kernels. Both are
    read in fp32, so that their sum is rounded once."""
    flat = traverse_util.flatten_dict(abstract, keep_empty_nodes=True)
    for layer, adapter in lora.adapters(metadata(path)).items():
        if (kernel := flat.get((*layer, "kernel"))) is None:
            continue  # from another model, as `_check_sizes` will report
        flat[(*layer, "kernel")] = kernel.update(dtype=np.float32)
        place = kernel.sharding
        if isinstance(place, jax.sharding.NamedSharding):
            place = jax.sharding.NamedSharding(place.mesh, jax.sharding.PartitionSpec())
        for name, stored in adapter.items():
            leaf = jax.ShapeDtypeStruct(stored.shape, np.float32, sharding=place)
            flat[(*layer, lora.ADAPTER, name)] = leaf
    return traverse_util.unflatten_dict(flat)


def has_adapters(workdir: Path, stage: str, step: int) -> bool:
    """Whether a stage's weights at this step include adapters."""
    path = workdir.absolute() / stage / "checkpoints" / str(step) / PARAMS
    return bool(lora.adapters(metadata(path)))


def has_average(workdir: Path, stage: str, step: int) -> bool:
    """Whether the weights for inference at this step are averages, with the raw ones stored too."""
    path = workdir.absolute() / stage / "checkpoints" / str(step) / TRAIN
    return path.is_dir() and RAW in metadata(path)


def read_config(workdir: Path) -> dict[str, Any]:
    """The configuration that a checkpoint directory carries, completed for this version.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    path = workdir / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing, so {workdir} is no checkpoint; "
            "give the --workdir of a `unicom train` run"
        )
    try:
        return configuration.read_config(workdir)
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
