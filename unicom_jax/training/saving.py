"""The checkpoints of a running stage: saving, which survives a full disk, and rollbacks."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

from unicom_jax.parallel.processes import ProcessGroup, Vote
from unicom_jax.runs import checkpoint as files
from unicom_jax.runs.storage import LOG, remove_half_written, storage_problem
from unicom_jax.training.checkpoint import Position, restore_newest, save_state
from unicom_jax.training.state import TrainState
from unicom_jax.training.step import Trainer


class TrainingError(Exception):
    """Training cannot continue. One line that names the cause and the fix."""


class Saver:
    """Saves and restores; all processes call it alike, and a failure on one counts for all.

    Args:
      save_every: steps between regular checkpoints (a stop makes others); 0: none are regular.
      keeping: see `open_manager`.

    Attributes:
      failed: number of saves that storage refused since this process began.
      best_step: at the end, the step of the checkpoint with the lowest held-out loss, if any.
    """

    def __init__(
        self,
        directory: Path,
        trainer: Trainer,
        group: ProcessGroup,
        vote: Vote,
        warn: Callable[[str], None],
        *,
        save_every: int,
        **keeping: int,
    ) -> None:
        logging.getLogger("absl").addFilter(LOG)
        self._open = partial(files.open_manager, directory, save_every=save_every, **keeping)
        self._directory, self._save_every = directory, save_every
        self._trainer, self._group, self._vote, self._warn = trainer, group, vote, warn
        self._manager = self._open()
        self._pending = 0  # the step of the save that may be under way
        self.failed = 0
        self.best_step: int | None = None

    def newest(self) -> tuple[TrainState, Position] | None:
        """See `restore_newest`."""
        return restore_newest(self._manager, self._trainer, self._warn, self._group)

    def save(self, position: Position, state: TrainState, loss: float | None = None) -> bool:
        """Starts a save when the previous one has finished. False: storage refused it; training may
        continue, and the next save tries again."""
        self.settle()
        remove_half_written(self._directory)  # threads of a failed save may have kept on writing
        self._pending, LOG.problem = position.next_step, ""
        return self._attempt(
            lambda: save_state(self._manager, self._trainer, position, state, loss)
        )

    def settle(self) -> bool:
        """Waits for the save that is under way. False: storage refused it."""
        return self._attempt(lambda: self._manager.wait_until_finished())

    def look(self) -> None:
        """Reports a save that has failed in the meantime. Several processes only ask each other at
        the next save, because asking waits for the devices."""
        if self._group.count == 1 and not self._manager.is_saving_in_progress():
            self.settle()

    def finish(self, position: Position, state: TrainState, loss: float | None = None) -> None:
        """The save that must not fail, because nothing comes after it.

        Raises:
          TrainingError: storage refused it.
        """
        if self.save(position, state, loss) and self.settle():
            self.best_step = self._manager.best_step()
            self.close()
            return
        steps = self._manager.all_steps()
        then = f"resume from step {max(steps)}" if steps else "start again"
        raise TrainingError(
            f"{self._trainer.stage.name}: step {position.next_step} could not be saved; free space "
            f"under {self._directory} and run the same command to {then}"
        )

    def close(self) -> None:
        """Ends without a save."""
        self.settle()
        self._manager.close()

    def roll_back(self, position: Position) -> tuple[TrainState, Position] | None:
        """The last good state, with the data after the batches that training has read; newer
        checkpoints, now obsolete, are removed. None if nothing was saved yet.

        A checkpoint is good if its last step was not skipped and it is a regular one, so that a
        rollback is the same whether a run was interrupted or not. If there is none, the newest is
        used: skipped steps change no weights.
        """
        self.settle()

        def good(state: TrainState, saved: Position) -> bool:
            regular = self._save_every and saved.next_step % self._save_every == 0
            return bool(regular) and not int(state.opt_state.notfinite_count)

        find = partial(restore_newest, self._manager, self._trainer, self._warn, self._group)
        found = find(good) or find()
        if found is None:
            return None
        state, saved = found
        for step in self._manager.all_steps():
            if step > saved.next_step:
                self._manager.delete(step)
        offset = position.next_step + position.data_offset - saved.next_step
        return state, Position(saved.next_step, offset, position.rollbacks + 1)

    def _attempt(self, work: Callable[[], object]) -> bool:
        problem = None
        try:
            work()
        except Exception as error:
            problem = error
        # The first error to arrive may be a consequence of the storage's, which was logged.
        refused = storage_problem(problem) or (LOG.problem if problem is not None else "")
        if not self._vote.now(bool(refused)):
            if problem is not None:
                raise problem
            return True
        self.failed += 1
        self._warn(
            f"{self._trainer.stage.name}: the checkpoint of step {self._pending} could not be "
            f"written under {self._directory} ({refused or 'another process failed'}); "
            "earlier ones are kept, the next save tries again"
        )
        self._manager = self._open()  # the old manager would repeat its error at every call
        return False
