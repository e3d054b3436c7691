"""Pictures and words per second of one model: this code, PyTorch peers, other checkouts.

    python -m experiments.benchmarks.sampling --checkpoint=RUN [--against=CHECKOUT] [--rounds=15]

Each contestant is a process with the same weights. All wait while one of them takes its turn, so
that drift of the machine affects all of them. Pictures are drawn with the run's own settings
(`sample`); words are greedy answers about pictures. Only ratios within one run are comparable. The
peers are the exported PyTorch model and, for words, `generate` of transformers with its own model
of the same sizes. That model always writes `--tokens` tokens, so a run whose answers end early is
compared by tokens per second. `--against` takes any number of other checkouts of this code, which
must be able to load the run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.benchmarks.race import Contestant, Spread, race, ratios

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("sampling_worker.py")
TARGET = 0.40  # of a peer's time, at most
TURNS = {"draw": "pictures", "write": "tokens"}
EXPORTED, GENERATE = "exported PyTorch", "transformers' generate"


class Worker:
    """A contestant in a process of its own; `turns`: the keys of `TURNS` that it can take."""

    def __init__(
        self, name: str, checkout: Path, *arguments: str, turns: tuple[str, ...] = tuple(TURNS)
    ) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"}
        self.name, self.turns, self.tokens = name, turns, 0
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), *arguments],
            cwd=checkout, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self._answer()

    def _answer(self) -> Any:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended before its turn; its error is printed above")
        return json.loads(line)

    def turn(self, what: str) -> None:
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        self.tokens = self._answer()["tokens"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def line_up(options: argparse.Namespace) -> Iterator[list[Worker]]:
    """This code first, the other checkouts, and the peers."""
    numbers = str(options.pictures), str(options.tokens)
    run = str(Path(options.checkpoint).resolve())
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:

        def enter(*arguments: Any, **options: Any) -> Worker:
            worker = Worker(*arguments, **options)
            stack.callback(worker.close)
            return worker

        workers = [enter("unicom_jax", ROOT, "jax", run, *numbers)]
        for checkout in options.against:
            workers.append(enter(checkout, Path(checkout).resolve(), "jax", run, *numbers))
        if not options.no_torch:
            target = Path(folder, "exported")
            export = ["export", f"--checkpoint={run}", "--to=pytorch", str(target)]
            subprocess.run(
                [sys.executable, "-m", "unicom_jax.cli", *export],
                cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True,
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            workers.append(enter(EXPORTED, ROOT, "torch", str(target), *numbers))
            workers.append(enter(GENERATE, ROOT, "generate", run, *numbers, turns=("write",)))
        yield workers


def table_of(what: str, workers: list[Worker], seconds: np.ndarray, pictures: int) -> Table:
    table = Table(title=f"{what}: {len(seconds)} rounds in turns, median and quartiles")
    for column in ("", f"{TURNS[what]} per second", "time of one, ours ÷ this", "target", ""):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    amounts = [pictures if what == "draw" else worker.tokens for worker in workers]
    each = seconds / np.array(amounts)
    for worker, column, ratio in zip(workers, each.T, ratios(each), strict=True):
        rate = Spread.of(1 / column)
        row = [worker.name, f"{rate.median:.3g} [{rate.low:.3g}, {rate.high:.3g}]"]
        if worker is not workers[0]:
            row.append(f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]")
        if worker.name in (EXPORTED, GENERATE):
            row += [f"≤ {TARGET:.2f}", "reached" if ratio.median <= TARGET else "missed"]
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.sampling")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a trained workdir")
    parser.add_argument("--against", action="append", default=[], metavar="CHECKOUT")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pictures", type=int, default=8, help="a batch")
    parser.add_argument("--tokens", type=int, default=32, help="longest answer")
    parser.add_argument("--no-torch", action="store_true", help="leave the peers out")
    options = parser.parse_args()
    console = Console()
    console.width = max(console.width, 110)
    with console.status("starting") as status, line_up(options) as workers:
        for what in TURNS:
            able = [worker for worker in workers if what in worker.turns]
            contestants = [Contestant(one.name, partial(one.turn, what), 0) for one in able]
            seconds = race(contestants, options.rounds, warmup=1, report=status.update)
            console.print(table_of(what, able, seconds, options.pictures))
            if len({worker.tokens for worker in able}) > 1:
                console.print("the contestants wrote different numbers of tokens")
    console.print(f"load average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
