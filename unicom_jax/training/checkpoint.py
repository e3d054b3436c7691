"""How a train state maps to the items of a checkpoint (`runs/checkpoint.py`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp

from unicom_jax.parallel.processes import ProcessError, ProcessGroup
from unicom_jax.runs import checkpoint as files
from unicom_jax.training.state import TrainState, merge, split
from unicom_jax.training.step import Trainer


@dataclasses.dataclass(frozen=True)
class Position:
    """The position of training: step s reads batch s + `data_offset`.

    Attributes:
      next_step: steps taken, skipped ones included.
      data_offset: batches that were passed over by rolling back to an earlier checkpoint.
      rollbacks: number of rollbacks.
      learning_rate: learning rate of step `next_step`, under the settings with which the position
        was saved; None if it is not saved yet, or was saved by a version without this field.
    """

    next_step: int = 0
    data_offset: int = 0
    rollbacks: int = 0
    learning_rate: float | None = None


def _train_item(trainer: Trainer, state: TrainState) -> dict[str, Any]:
    item = {"step": state.step, "opt_state": state.opt_state}
    if trainer.ema_decay:  # `params` then holds the averaged weights, and this the raw ones
        item[files.RAW] = split(state.params, trainer.stage.freeze)[0]
    if state.norms is not None:
        item["norms"] = state.norms
    if state.old is not None:
        item["old"] = state.old
    return item


def save_state(
    manager: ocp.CheckpointManager,
    trainer: Trainer,
    position: Position,
    state: TrainState,
    loss: float | None = None,
) -> None:
    """Saves asynchronously. `loss`: the held-out loss, if it was measured at this step."""
    train = _train_item(trainer, state)
    position = dataclasses.replace(position, learning_rate=trainer.next_rate(state))
    stands = {**dataclasses.asdict(position), "seed": trainer.seed}
    weights = trainer.weights_for_use(state)
    files.save(manager, position.next_step, weights, train, stands, loss)


def restore_state(
    manager: ocp.CheckpointManager, trainer: Trainer, step: int
) -> tuple[TrainState, Position]:
    """The state saved at `step`, bit for bit, on the trainer's mesh.

    Raises:
      CheckpointError: the checkpoint is damaged.
      OtherRunError: it belongs to another config or seed.
    """
    abstract = trainer.abstract_state()
    params = files.restore(manager, step, files.PARAMS, abstract.params)
    train = files.restore(manager, step, files.TRAIN, _train_item(trainer, abstract))
    stands = files.restore(manager, step, files.POSITION, None)
    seed = stands.pop("seed")
    if seed != trainer.seed:
        raise files.OtherRunError(
            f"{manager.directory} was trained with seed {seed}, not {trainer.seed}: it would "
            f"continue with other data; set --config.seed={seed} or use a new --workdir"
        )
    ema = split(params, trainer.stage.freeze)[0] if trainer.ema_decay else None
    raw = merge(params, train[files.RAW]) if trainer.ema_decay else params
    others = train.get("norms"), train.get("old")
    state = TrainState(train["step"], raw, train["opt_state"], ema, *others)
    return state, Position(**stands)


def restore_newest(
    manager: ocp.CheckpointManager,
    trainer: Trainer,
    warn: Callable[[str], None],
    group: ProcessGroup | None = None,
    accept: Callable[[TrainState, Position], bool] = lambda state, position: True,
) -> tuple[TrainState, Position] | None:
    """The newest state that all processes can read; None if training never saved one.

    All processes alike skip newer checkpoints that are damaged, which `warn` names, or that
    `accept` rejects.

    Raises:
      OtherRunError: the newest readable one belongs to another config or seed.
      CheckpointError: all are damaged; a new start would overwrite what might be repaired.
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
    refused = False
    for step in steps:
        found, problem = None, ""
        try:
            found = jax.block_until_ready(restore_state(manager, trainer, step))
        except files.OtherRunError:
            raise
        except files.CheckpointError as error:
            problem = str(error)
        problems = list(filter(None, group.gather(f"reading checkpoint {step}", problem)))
        if problems:
            warn(problems[0])
        elif accept(*found):
            return found
        else:
            refused = True
    if steps and not refused:
        raise files.CheckpointError(
            f"no checkpoint under {manager.directory} can be read; restore one from a copy, or "
            "delete the folder to train this stage again"
        )
    return None
