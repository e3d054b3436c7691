"""`make bench`: our train step beside its peers, in turns, as one table.

    python -m experiments.benchmarks [--rounds 15] [--only "bare,Qwen3"]

Only ratios of one run compare. Hardware: two CPU cores; a run takes about three minutes.
"""

from __future__ import annotations

import argparse

import jax
from rich.console import Console
from rich.table import Table

from experiments.benchmarks import bare, ours, torch_peers
from experiments.benchmarks.race import Contestant, Spread, race, ratios
from experiments.benchmarks.standard import Standard

BARE_TARGET = 1.05


def line_up(sizes: Standard) -> tuple[list[Contestant], list[str]]:
    """Ours first, then the peers; and what could not take part."""
    params = ours.make_stage(sizes).module.init(jax.random.key(0))
    peers, missing = torch_peers.contestants(sizes)
    own = [ours.contestant(sizes, params), bare.contestant(sizes, params, BARE_TARGET)]
    return own + peers, missing


def step_table(contestants: list[Contestant], seconds) -> Table:
    table = Table(title=f"One train step, {len(seconds)} rounds in turns: median and quartiles")
    for column, justify in (
        ("", "left"),
        ("parameters", "right"),
        ("ms a step", "right"),
        ("ours ÷ this", "right"),
        ("target", "right"),
        ("", "left"),
    ):
        table.add_column(column, justify=justify)
    for contestant, column, ratio in zip(contestants, seconds.T, ratios(seconds), strict=True):
        time = Spread.of(column * 1e3)
        row = [
            contestant.name,
            f"{contestant.parameters / 1e6:.1f} M",
            f"{time.median:.0f} [{time.low:.0f}, {time.high:.0f}]",
        ]
        if contestant.target is not None:
            row += [
                f"{ratio.median:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]",
                f"≤ {contestant.target:.2f}",
                "reached" if ratio.median <= contestant.target else "missed",
            ]
        table.add_row(*row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--only", default="", help="parts of names, comma between; ours always runs"
    )
    options = parser.parse_args()
    console = Console()
    with console.status("building") as status:
        contestants, missing = line_up(Standard())
        wanted = [part.strip() for part in options.only.split(",") if part.strip()]
        contestants[1:] = [
            c for c in contestants[1:] if not wanted or any(part in c.name for part in wanted)
        ]
        seconds = race(contestants, options.rounds, told=status.update)
    console.print(step_table(contestants, seconds))
    for line in missing:
        console.print(line)


if __name__ == "__main__":
    main()
