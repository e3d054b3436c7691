"""Metrics to JSON lines, TensorBoard and (optionally) Weights & Biases; progress to the console."""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from unicom_jax.interop.atomic import write_text
from unicom_jax.training.event_files import Board, JsonLines
from unicom_jax.training.spool import Spool

WANDB_ID = "wandb_id"


class MetricWriter:
    """Appends one JSON object per step to `metrics.jsonl` and mirrors it to TensorBoard.

    Only one of several processes is active; the writers of the others do nothing.

    Attributes:
      folder: for files of other writers; files put there become part of `directory`.
    """

    def __init__(
        self,
        directory: Path,
        first_step: int = 0,
        wandb_project: str = "",
        *,
        active: bool = True,
    ) -> None:
        self._active = active
        self._spool = Spool(directory, ("metrics.jsonl", WANDB_ID) if active else ())
        self.folder = folder = self._spool.folder
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._lines = JsonLines(folder / "metrics.jsonl")
        self._lines.forget_after(first_step)  # written by an interrupted run after its checkpoint
        self._board = Board(folder / "tensorboard", after=first_step)
        self._wandb = None
        if wandb_project:
            self._wandb = _start_wandb(wandb_project, folder, directory)

    def go_back(self, step: int) -> None:
        """Drops what was written after `step`. Weights & Biases cannot do so: it ignores repeated
        steps until new ones come."""
        if self._active:
            self._lines.forget_after(step)
            self._board.forget_after(step)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if not self._active:
            return
        self._lines.write(step, values)
        self._board.write(step, values)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)
        self._spool.push()

    def keep(self) -> None:
        """To be called when a checkpoint is saved: stores the metrics up to it as well."""
        if self._active:
            self._lines.flush()
            self._spool.push(now=True)

    def show(self, step: int, pictures: Mapping[str, np.ndarray]) -> None:
        """Writes pictures (H, W, 3) uint8 by name, to TensorBoard and Weights & Biases."""
        if not self._active or not pictures:
            return
        self._board.show(step, pictures)
        if self._wandb is not None:
            import wandb

            self._wandb.log({name: wandb.Image(x) for name, x in pictures.items()}, step=step)

    def close(self) -> None:
        if self._active:
            self._lines.close()
            self._board.close()
            if self._wandb is not None:
                self._wandb.finish()
        self._spool.close()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _start_wandb(project: str, folder: Path, directory: Path):
    """Starts a run that writes to `folder`, which stands in for the stage's `directory`."""
    try:
        import wandb
    except ImportError:
        raise ValueError(
            f"wandb_project={project!r} is set but wandb is missing: "
            "pip install 'unicom_jax[wandb]'"
        ) from None
    kept = folder / WANDB_ID  # holds the id, so that a resumed stage continues this run
    if not kept.exists():
        write_text(kept, secrets.token_hex(8))
    return wandb.init(
        project=project,
        dir=str(folder),
        name=f"{directory.parent.name}/{directory.name}",  # workdir and stage
        group=directory.parent.name,
        id=kept.read_text(encoding="utf-8").strip(),
        resume="allow",
    )


def known(values: Mapping[str, float], prefix: str = "") -> dict[str, float]:
    """`values` without the parts of loss terms, `<prefix><term>/<part>`, that are NaN because no
    token belonged to them (`core.losses.reported`)."""

    def is_part(name: str) -> bool:
        return name.startswith(prefix) and "/" in name.removeprefix(prefix)

    return {k: v for k, v in values.items() if not (math.isnan(v) and is_part(k))}


def make_progress(console: Console) -> Progress:
    """A bar with step, rate, loss and time left."""
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=False,
        refresh_per_second=2,
        disable=not sys.stdout.isatty(),
    )


def format_note(values: Mapping[str, float]) -> str:
    """`flow 0.412  text 1.03  12.3k tok/s`: a short note for a person who watches."""
    losses = [
        f"{name.removeprefix('loss/')} {value:.3g}"
        for name, value in values.items()
        if name.startswith("loss/") and name.count("/") == 1
    ]
    rate = values.get("tokens_per_second")
    return "  ".join([*losses, f"{rate / 1000:.1f}k tok/s"] if rate else losses)
