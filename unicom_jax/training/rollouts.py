"""What a stage of reinforcement learning shows of its rollouts while it is trained."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import jax

from unicom_jax.core.activations import on_mesh
from unicom_jax.core.module import Params
from unicom_jax.core.picture import Picture
from unicom_jax.parallel.sharding import place_batch, replicated
from unicom_jax.rl.shown import rows_of, strip, write_rows
from unicom_jax.runs.workdir import ROLLOUTS
from unicom_jax.training.held_out import Batches
from unicom_jax.training.loop import Observer
from unicom_jax.training.step import Trainer

SHOWN = 4  # pictures


def rollout_observer(
    trainer: Trainer,
    frozen: Params,
    held_out: Batches,
    directory: Path,
    *,
    group: int,
    decode: Callable[[list[int]], str],
    patch: int,
) -> Observer:
    """Pictures `rollout/0` ... of the first held-out batch, by the weights it is given and from the
    same noise every time; the newest are files in `directory` / `ROLLOUTS`, too.

    Args:
      directory: of the stage. `group`, `decode`, `patch`: as of `rl.shown.rows_of`.
    """
    with closing(held_out(0)) as stream:
        batch = place_batch(next(stream), trainer.mesh)

    @partial(jax.jit, out_shardings=replicated(trainer.mesh))
    def look(params: Params, frozen: Params, batch: object) -> object:
        with on_mesh(trainer.mesh):
            return trainer.stage.rollouts(params, frozen, batch, jax.random.key(trainer.seed))

    def observe(step: int, params: Params) -> tuple[dict[str, float], dict[str, Picture]]:
        found = jax.device_get(look(params, frozen, batch))
        rows = rows_of(found, group, SHOWN, decode, patch)
        if jax.process_index() == 0:
            write_rows(directory / ROLLOUTS, step, rows)
        return {}, {f"rollout/{number}": strip(row) for number, row in enumerate(rows)}

    return observe


def both(one: Observer, other: Observer) -> Observer:
    """What two observers see."""

    def observe(step: int, params: Params) -> tuple[dict[str, float], dict[str, Picture]]:
        (values, pictures), (more, further) = one(step, params), other(step, params)
        return {**values, **more}, {**pictures, **further}

    return observe
