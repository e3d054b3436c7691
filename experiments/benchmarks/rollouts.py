"""Rollouts of reinforcement learning against the engine of `unicom sample`, at the same batch.

    python -m experiments.benchmarks.rollouts --checkpoint=RUN [--batch=64] [--rounds=15]

Both draw the same captions with the run's own settings (`sample`) and both write captions of the
same pictures at temperature 1, in turns, so that a machine that drifts drifts for both. The engine
takes words and pictures from the host and gives pictures and words back; a rollout stays on the
device, as in training, and is one program. Captions are as long as the weights make them, so they
are counted and not their tokens.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from data_pipelines.images import patchify
from data_pipelines.sequences.tasks import IN_DETAIL
from experiments.benchmarks.race import Contestant, Spread, race, ratios
from unicom_jax.evaluation.command import data_of
from unicom_jax.evaluation.suite import EvaluationConfig
from unicom_jax.inference.generator import Generator
from unicom_jax.rl import rollouts
from unicom_jax.rl.build import models_of
from unicom_jax.rl.rows import picture_rows
from unicom_jax.rl.template import make_template
from unicom_jax.runs import weights

TARGET = 0.8  # of the engine's throughput, at least
Turns = dict[str, Callable[[], object]]


def line_up(run: Path, batch: int, tokens: int) -> tuple[Turns, Turns]:
    """What rollouts and the engine do, by what it is: "draw" and "write"."""
    config, tokenizer, params = weights.load(run)
    generator = Generator(config, tokenizer, params)
    generator.batch_size = batch
    settings = EvaluationConfig.of(config | {"evaluation": config["evaluation"] | {"prompts": 0}})
    examples = [data_of(config, settings).examples[index] for index in range(batch)]
    captions = [example.captions[-1] for example in examples]
    pictures = [generator.prepared(example.image) for example in examples]

    template = make_template(config, tokenizer, IN_DETAIL)
    models = models_of(config, template)
    model, unified = models.unified, params["unified"]
    patches = jnp.stack([patchify(one, config["data"]["patch"]) for one in pictures])
    grids = jnp.tile(jnp.array([template.grid], jnp.int32), (batch, 1))
    encoded = [tokenizer.encode(caption) for caption in captions]
    words = np.full((batch, max(map(len, encoded))), -1, np.int32)
    for row, ids in zip(words, encoded, strict=True):
        row[: len(ids)] = ids
    drawing = generator.suited(generator.drawing(), [], template.grid)
    codec_steps = config["codec"]["sample_steps"]

    @jax.jit
    def draw(unified: object, params: object, words: jax.Array, key: jax.Array) -> jax.Array:
        latent_grids = models.codec.grid(grids)
        latents = rollouts.draw(model, unified, words, template, latent_grids, drawing, key)
        return rollouts.paint(models, params, latents, grids, key, codec_steps)

    @jax.jit
    def write(unified: object, params: object, patches: jax.Array, key: jax.Array) -> jax.Array:
        rows = picture_rows(template, patches, grids)
        prepared = model.images.prepare(models.family.frozen_of(params), rows)
        return rollouts.write_captions(model, unified, prepared, rows, template, 1, tokens, key)

    words, key = jnp.asarray(words), jax.random.key(0)
    ours = {
        "draw": lambda: jax.block_until_ready(draw(unified, params, words, key)),
        "write": lambda: jax.block_until_ready(write(unified, params, patches, key)),
    }
    questions = [IN_DETAIL] * batch
    engine = {
        "draw": lambda: generator.draw(captions),
        "write": lambda: generator.answer(pictures, questions, max_tokens=tokens, temperature=1.0),
    }
    return ours, engine


def table_of(seconds: dict[str, np.ndarray], batch: int) -> Table:
    """`seconds`: (rounds, 2) of rollouts and of the engine, by what they did."""
    table = Table(title=f"samples a second, batches of {batch}: median and quartiles")
    for column in ("", "rollouts", "unicom sample", "rollouts ÷ sample", "at least", ""):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for what, both in seconds.items():
        rates = [Spread.of(batch / column) for column in both.T]
        ratio = ratios(both, ours=1)[0]  # the engine's time over ours is our rate over its
        cells = [f"{one.median:.3g} [{one.low:.3g}, {one.high:.3g}]" for one in (*rates, ratio)]
        verdict = "reached" if ratio.median >= TARGET else "missed"
        table.add_row(what, *cells, f"{TARGET:.2f}", verdict)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.benchmarks.rollouts")
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="a trained workdir")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=48, help="longest caption")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    console, seconds = Console(), {}
    with console.status("starting") as status:
        ours, engine = line_up(Path(options.checkpoint), options.batch, options.tokens)
        for what in ours:
            pair = [
                Contestant(name, turns[what], 0)
                for name, turns in (("rollouts", ours), ("unicom sample", engine))
            ]
            seconds[what] = race(pair, options.rounds, warmup=1, report=status.update)
    console.print(table_of(seconds, options.batch))
    console.print(f"load average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
