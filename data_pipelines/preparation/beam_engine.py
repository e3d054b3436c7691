"""Apache Beam as the engine of `unicom data prepare`, which assigns files to workers."""

from __future__ import annotations

import difflib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from data_pipelines.faults import SourceError, one_line

LOCAL = "FnApiRunner"  # Beam's local runner for batches
POLL = 0.5  # seconds
LOG = "beam.log"  # in the folder that is written


def check_engine(flags: Sequence[str]) -> None:
    """Checks that Beam is installed and knows the flags that are meant for it.

    Raises:
      SourceError: one line that says how to fix it.
    """
    known = _options()([]).get_all_options()
    for flag in flags:
        name = flag.removeprefix("--").partition("=")[0]
        if name not in known and name.removeprefix("no_") not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean --{close[0]}?" if close else ""
            raise SourceError(f"{flag}: neither unicom nor Apache Beam has this flag{hint}")


def run(
    work: Callable[[Any], None],
    items: Sequence[Any],
    log: Path,
    runner: str = LOCAL,
    workers: int = 1,
    flags: Sequence[str] = (),
) -> None:
    """Calls `work` on every item, on the workers of a runner, and waits until all are done.

    Args:
      work: must be picklable and must not report failures by exceptions, since runners retry a
        failing item.
      log: the file for the local runner's messages; other runners write theirs to stderr.
      runner: the name of a Beam runner.
      workers: processes of the local runner; other runners have their own flags for it.
      flags: passed to the runner, as `--name=value`.

    Raises:
      SourceError: the runner gave up.
    """
    options = _options()
    import apache_beam as beam

    local = runner == LOCAL
    if local:
        mode = "multi_processing" if workers > 1 else "in_memory"
        flags = [f"--direct_num_workers={workers}", f"--direct_running_mode={mode}", *flags]
    with _into(log) if local else nullcontext():
        try:
            pipeline = beam.Pipeline(options=options([f"--runner={runner}", *flags]))
            _ = (
                pipeline
                | "files" >> beam.Create(list(items))
                | "spread" >> beam.Reshuffle()
                | "write" >> beam.Map(work)
            )
            pipeline.run().wait_until_finish()
        except Exception as error:  # runners raise whatever their services do
            where = f"; more in {log}" if local else ""
            raise SourceError(f"{runner}: gave up ({one_line(error)}){where}") from error


def _options() -> Any:
    """Beam's options class. Its first import warns about cloud packages that are not installed."""
    logging.disable(logging.WARNING)
    try:
        import apache_beam  # noqa: F401
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise SourceError(
            "this preparation needs Apache Beam: pip install 'unicom_jax[prepare]', in a "
            "separate environment if pip reports a conflict with another package"
        ) from None
    finally:
        logging.disable(logging.NOTSET)
    return PipelineOptions


@contextmanager
def _into(log: Path) -> Iterator[None]:
    """Redirects what Beam's local runner and its worker processes write to stderr, through any
    channel that they open, to a file.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with log.open("ab") as file:
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def progress(done: Callable[[], int], total: int, console: Any) -> Iterator[None]:
    """A bar with rate and time left over `done()` of `total` rows, while the body runs."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft

    columns = (
        TextColumn("[bold]rows"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("left"),
        TimeLeft(),
    )
    over = threading.Event()
    first = done()
    with Progress(*columns, console=console, disable=not sys.stdout.isatty()) as bar:
        task = bar.add_task("rows", total=total, completed=first, rate="")

        def look() -> None:
            rows, elapsed = done(), bar.tasks[0].elapsed or 0.0
            rate = (rows - first) / elapsed if elapsed else 0.0
            bar.update(task, completed=rows, rate=f"{rate:.1f} rows/s")

        def watch() -> None:
            while not over.wait(POLL):
                look()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            over.set()
            watcher.join()
            look()
