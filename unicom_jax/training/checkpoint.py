"""How a train state maps to the items of a checkpoint (`interop/checkpoint.py`)."""

from __future__ import annotations

from typing import Any

import jax
import orbax.checkpoint as ocp

from unicom_jax.interop import checkpoint as files
from unicom_jax.parallel.processes import ProcessError, ProcessGroup
from unicom_jax.training.state import TrainState, merge, split
from unicom_jax.training.step import Trainer


def _train_item(trainer: Trainer, state: TrainState) -> dict[str, Any]:
    item = {"step": state.step, "opt_state": state.opt_state}
    if trainer.ema_decay:  # `params` then holds the averaged weights, the raw ones go here
        item[files.RAW] = split(state.params, trainer.stage.freeze)[0]
    return item


def save_state(
    manager: ocp.CheckpointManager, trainer: Trainer, step: int, state: TrainState
) -> None:
    """Saves asynchronously. `step` is the data position: a batch is a function of (seed, step)."""
    position = {"next_step": step, "seed": trainer.seed}
    train = _train_item(trainer, state)
    files.save(manager, step, trainer.weights_for_use(state), train, position)


def restore_state(manager: ocp.CheckpointManager, trainer: Trainer, step: int) -> TrainState:
    """The state saved at `step`, bit for bit, on the trainer's mesh.

    Raises:
      CheckpointError: it is damaged.
      OtherRunError: it belongs to another config or seed.
    """
    abstract = trainer.abstract_state()
    params = files.restore(manager, step, files.PARAMS, abstract.params)
    train = files.restore(manager, step, files.TRAIN, _train_item(trainer, abstract))
    position = files.restore(manager, step, files.POSITION, None)
    if position["seed"] != trainer.seed:
        raise files.OtherRunError(
            f"{manager.directory} was trained with seed {position['seed']}, not {trainer.seed}: "
            f"its data would not continue; set --config.seed={position['seed']} or a new --workdir"
        )
    ema = split(params, trainer.stage.freeze)[0] if trainer.ema_decay else None
    raw = merge(params, train[files.RAW]) if trainer.ema_decay else params
    return TrainState(train["step"], raw, train["opt_state"], ema)


def restore_newest(
    manager: ocp.CheckpointManager, trainer: Trainer, warn, group: ProcessGroup | None = None
) -> TrainState | None:
    """The newest state that all processes can read, None where training never saved one.

    Damaged newer ones are named through `warn` and skipped, by all processes alike.

    Raises:
      OtherRunError: the newest readable one belongs to another config or seed.
      CheckpointError: all are damaged; training anew would overwrite what might be mended.
      ProcessError: the processes see different checkpoints.
    """
    group = group or ProcessGroup()
    saved = manager.all_steps()
    steps = sorted((s for s in saved if not files.is_import(manager.directory, s)), reverse=True)
    if len(set(group.gather("the list of checkpoints", str(steps)))) > 1:
        raise ProcessError(
            f"the processes see different checkpoints in {manager.directory}; give a --workdir on "
            "a file system that all of them share"
        )
    for step in steps:
        state, problem = None, ""
        try:
            state = jax.block_until_ready(restore_state(manager, trainer, step))
        except files.OtherRunError:
            raise
        except files.CheckpointError as error:
            problem = str(error)
        problems = list(filter(None, group.gather(f"reading checkpoint {step}", problem)))
        if not problems:
            return state
        warn(problems[0])
    if steps:
        raise files.CheckpointError(
            f"no checkpoint under {manager.directory} can be read; restore one from a copy, or "
            "delete the folder to train this stage anew"
        )
    return None
