"""Metrics to JSON lines, TensorBoard and (optionally) Weights & Biases; progress to the console."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tensorboardX import SummaryWriter


class MetricWriter:
    """Appends one JSON object a step to `metrics.jsonl` and mirrors it to TensorBoard.

    Of several processes only one is active; the writers of the others do nothing.
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
        if not active:
            return
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / "metrics.jsonl"
        self._forget_from(first_step)
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=first_step or None)
        self._wandb = _start_wandb(wandb_project, directory) if wandb_project else None

    def _forget_from(self, step: int) -> None:
        """Drops what an interrupted run wrote after the checkpoint that is resumed."""
        if self._path.exists():
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            self._path.write_text("".join(f"{line}\n" for line in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(dict(values), step=step)

    def close(self) -> None:
        if not self._active:
            return
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()

    def __enter__(self) -> MetricWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # a line cut short by a crash is dropped


def _start_wandb(project: str, directory: Path):
    try:
        import wandb
    except ImportError:
        raise ValueError(
            f"wandb_project={project!r} is set but wandb is missing: "
            "pip install 'unicom_jax[wandb]'"
        ) from None
    kept = directory / "wandb_id"  # a stage that goes on continues its run there
    if not kept.exists():
        kept.write_text(secrets.token_hex(8))
    return wandb.init(
        project=project,
        dir=str(directory),
        name=directory.name,
        id=kept.read_text().strip(),
        resume="allow",
    )


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
    """`flow 0.412  text 1.03  12.3k tok/s`: what a person watches."""
    losses = [
        f"{name.removeprefix('loss/')} {value:.3g}"
        for name, value in values.items()
        if name.startswith("loss/")
    ]
    rate = values.get("tokens_per_second")
    return "  ".join([*losses, f"{rate / 1000:.1f}k tok/s"] if rate else losses)
