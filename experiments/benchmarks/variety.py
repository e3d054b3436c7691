"""How varied the drawings of one prompt of Scenes are.

    python -m experiments.benchmarks.variety --checkpoint=RUN [RUN ...] [--drawings=64]
                                             [--guidance=1] [--seed=0]

Of the drawings that the exact judge accepts, it counts layouts (which shape is at which place) and
looks (colours of the shapes, and the background). The printed numbers are exponentials of
entropies: n where n layouts are equally frequent, 1 where all drawings have the same one. All runs
draw from the same noise.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipelines.scenes.facts import check
from data_pipelines.scenes.judge import read_scene
from data_pipelines.scenes.language import parse
from unicom_jax.config import ConfigError
from unicom_jax.core.paths import as_path
from unicom_jax.core.picture import Picture
from unicom_jax.inference.generator import Generator
from unicom_jax.runs import weights
from unicom_jax.runs.items import CheckpointError

PROMPTS = (
    "a circle and a cross",
    "a red ring",
    "a blue circle and a green triangle",
    "two crosses",
)


@dataclasses.dataclass(frozen=True)
class Variety:
    """Of the drawings of one prompt: how many are correct, and how many layouts and looks they
    have."""

    correct: int
    layouts: float
    looks: float


def variety(prompt: str, drawings: Iterable[Picture]) -> Variety:
    """Of drawings of a prompt in the grammar of Scenes."""
    asked, layouts, looks = parse(prompt), [], []
    for drawing in drawings:
        seen = read_scene(drawing)
        if check(asked, seen.objects, seen.background)[0]:
            layouts.append(tuple(sorted((one.shape, one.place) for one in seen.objects)))
            colours = tuple(sorted((one.shape, one.colour) for one in seen.objects))
            looks.append((colours, seen.background))
    return Variety(len(layouts), effective(layouts), effective(looks))


def effective(values: Sequence[Hashable]) -> float:
    """The exponential of the entropy of values; 0 of none."""
    counts = np.array(list(Counter(values).values()), float)
    shares = counts / max(counts.sum(), 1.0)
    return float(np.exp(-np.sum(shares * np.log(shares)))) if len(values) else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.variety")
    parser.add_argument("--checkpoint", nargs="+", required=True, metavar="RUN")
    parser.add_argument("--drawings", type=int, default=64, help="of each prompt")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.drawings < 1:
        parser.error("--drawings: must be at least 1")
    try:
        Console(soft_wrap=True).print(_table(options))
    except (CheckpointError, ConfigError, OSError, ValueError) as error:
        raise SystemExit(f"{parser.prog}: {error}") from error


def _table(options: argparse.Namespace) -> Table:
    """The numbers of all runs.

    Raises:
      CheckpointError: a folder holds no run, or one of another version.
      ConfigError, ValueError: a model that does not draw.
    """
    for run in options.checkpoint:  # before the first one draws for minutes
        weights.describe(as_path(run))
    table = Table("run", "prompt", f"correct of {options.drawings}", "layouts", "looks")
    for run in options.checkpoint:
        generator = Generator.load(run)
        for prompt in PROMPTS:
            drawn = generator.draw(
                prompt, count=options.drawings, guidance=options.guidance, seed=options.seed
            )
            found = variety(prompt, [np.asarray(one.image) for one in drawn])
            numbers = f"{found.correct}", f"{found.layouts:.1f}", f"{found.looks:.1f}"
            table.add_row(str(run), prompt, *numbers)
    return table


if __name__ == "__main__":
    main()
