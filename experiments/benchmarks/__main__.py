"""`make bench`: our training step and its peers, timed in turn, as one table.

    python -m experiments.benchmarks [--rounds 15] [--only "bare,Qwen3"]

Only ratios within one run are comparable. Hardware: two CPU cores; a run takes about three minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import bare, ours, pipeline, torch_peers
from experiments.benchmarks.race import Contestant, Spread, race, ratios
from experiments.benchmarks.standard import Standard
from unicom_jax.core.memory import keep_freed_memory

BARE_TARGET = 1.05
WIDTH = 124  # of the tables
BUSY = 0.7  # load average from which other processes disturb the comparison


def line_up(sizes: Standard) -> tuple[list[Contestant], list[str]]:
    """Ours first, then the peers; and a line for each peer that could not take part."""
    params = ours.make_stage(sizes).module.init(jax.random.key(0))
    peers, missing = torch_peers.contestants(sizes)
    own = [
        ours.contestant(sizes, params, unroll=sizes.depth),  # the peers' layers are no loop either
        ours.contestant(sizes, params, "unicom_jax, one layer a turn"),
        bare.contestant(sizes, params, BARE_TARGET),
    ]
    return own + peers, missing


def written(spread: Spread, form: str) -> str:
    """median [low, high]"""
    low, median, high = (format(x, form) for x in (spread.low, spread.median, spread.high))
    return f"{median} [{low}, {high}]"


def step_table(contestants: list[Contestant], seconds) -> Table:
    table = Table(title=f"One train step, {len(seconds)} rounds in turns: median and quartiles")
    table.add_column("", no_wrap=True)
    for column in ("parameters", "ms per step", "ours ÷ this", "target", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for contestant, column, ratio in zip(contestants, seconds.T, ratios(seconds), strict=True):
        time = Spread.of(column * 1e3)
        row = [
            contestant.name,
            f"{contestant.parameters / 1e6:.1f} M",
            written(time, ".0f"),
        ]
        if contestant is not contestants[0]:
            row.append(written(ratio, ".2f"))
        if contestant.target is not None:
            row += [
                f"≤ {contestant.target:.2f}",
                "reached" if ratio.median <= contestant.target else "missed",
            ]
        table.add_row(*row)
    return table


def pipeline_table(sizes: Standard, deliveries: list[pipeline.Delivery], step: float) -> Table:
    """Against `step`, our median seconds a step."""
    eaten = sizes.rows * sizes.slots / step
    table = Table(title=f"Input pipeline alone; our step takes {eaten:,.0f} tokens a second")
    table.add_column("", no_wrap=True)
    for column in ("examples a second", "tokens a second", "× the step's", "target", ""):
        table.add_column(column, justify="right", no_wrap=True)
    for delivery in deliveries:
        share = Spread(*(value / eaten for value in dataclasses.astuple(delivery.tokens)))
        table.add_row(
            delivery.name,
            written(delivery.examples, ",.0f"),
            written(delivery.tokens, ",.0f"),
            written(share, ".1f"),
            f"> {pipeline.TARGET:.0f}",
            "reached" if share.median > pipeline.TARGET else "missed",
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--only", default="", help="parts of names, comma between; ours always runs"
    )
    options = parser.parse_args()
    console = Console()
    console.width = max(console.width, WIDTH)
    keep_freed_memory()  # as the `unicom` command does; the peers share the process and the gain
    sizes = Standard()
    load = os.getloadavg()[0]
    with console.status("building") as status:
        contestants, notes = line_up(sizes)
        wanted = [part.strip() for part in options.only.split(",") if part.strip()]
        contestants[1:] = [
            c for c in contestants[1:] if not wanted or any(part in c.name for part in wanted)
        ]
        seconds = race(contestants, options.rounds, report=status.update)
        status.update("input pipeline")
        delivered = pipeline.deliveries(sizes, samples=options.rounds)
    console.print(step_table(contestants, seconds))
    console.print(pipeline_table(sizes, delivered, float(np.median(seconds[:, 0]))))
    if load > BUSY:
        notes.append(f"load average was {load:.1f} before the start; torch suffers most from that")
    for line in notes:
        console.print(line)


if __name__ == "__main__":
    main()
