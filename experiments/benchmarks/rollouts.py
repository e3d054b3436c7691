"""Rollouts of reinforcement learning against the engine of `unicom sample`, at the same batch; and
where the time of a training step goes.

    python -m experiments.benchmarks.rollouts --checkpoint=RUN [--batch=64] [--rounds=15]
    python -m experiments.benchmarks.rollouts --checkpoint=RUN --stage=u4g

Both draw the same captions with the run's own settings (`sample`) and both write captions of the
same pictures at temperature 1, in turns, so that a machine that drifts drifts for both. The engine
takes words and pictures from the host and gives pictures and words back; a rollout stays on the
device, as in training, and is one program. Captions are as long as the weights make them, so they
are counted and not their tokens.

With `--stage` the settings are those of the run's configuration. Of a step are timed: all that
prepares the update (rollouts, rewards, and what the loss compares with), rewards alone, and the
update.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from data_pipelines.images import patchify
from data_pipelines.sequences.tasks import IN_DETAIL
from experiments.benchmarks.race import Contestant, Spread, race, ratios
from unicom_jax.evaluation.command import data_of
from unicom_jax.evaluation.suite import EvaluationConfig
from unicom_jax.inference.generator import Generator
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.parallel.sharding import place_batch
from unicom_jax.rl import rollouts
from unicom_jax.rl.build import build_captioner, build_drawer, models_of
from unicom_jax.rl.rows import picture_rows
from unicom_jax.rl.template import make_template
from unicom_jax.runs import weights
from unicom_jax.runs.loading import stage_loader
from unicom_jax.runs.stages import START, spec_of
from unicom_jax.training.assemble import make_trainer

TARGET = 0.8  # of the engine's throughput, at least
POLICIES = {"captioner": build_captioner, "drawer": build_drawer}  # by `StageSpec.loss`
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
        read = rollouts.read_prompts(model, unified, words, template, drawing.branches)
        latents = rollouts.draw(model, unified, read, models.codec.grid(grids), drawing, key)
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


def step_parts(run: Path, label: str) -> Turns:
    """The programs of a step of a stage: "prepare", "rewards" (a part of it) and "update"."""
    config, tokenizer, params = weights.load(run)
    config, mesh, spec = ConfigDict(config), make_mesh(), spec_of(label)
    trainer = make_trainer(label, config, mesh, lambda: iter(()), tokenizer)
    policy = POLICIES[spec.loss](spec.name, config, tokenizer)
    frozen = {**params, START: params["unified"]}
    with contextlib.closing(stage_loader(config, label, tokenizer)) as stream:
        batch = place_batch(next(stream), mesh)
    held = {"state": trainer.init_state(jax.tree.map(jnp.copy, params["unified"]))}
    prepare, step = trainer.prepare_step(), trainer.train_step()
    found = jax.jit(trainer.stage.rollouts)(params["unified"], frozen, batch, jax.random.key(0))
    score = jax.jit(lambda *given: policy.scoring(*given))  # as a dataclass it has no hash
    prepared = prepare(held["state"], frozen, batch)

    def update() -> None:
        for _ in range(trainer.stage.inner_steps):
            held["state"], metrics = step(held["state"], frozen, prepared)
        jax.block_until_ready(metrics)

    return {
        "prepare": lambda: jax.block_until_ready(prepare(held["state"], frozen, batch)),
        "rewards": lambda: jax.block_until_ready(score(frozen, found.originals, found.samples)),
        "update": update,
    }


def shares_of(seconds: np.ndarray) -> dict[str, Spread]:
    """Shares of a step, from (rounds, 3) seconds of `step_parts`; each within its round."""
    prepare, rewards, update = seconds.T
    parts = {"rollouts": prepare - rewards, "rewards": rewards, "update": update}
    return {name: Spread.of(part / (prepare + update)) for name, part in parts.items()}


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
    parser.add_argument("--stage", default="", help="of the run: time the parts of its steps")
    options = parser.parse_args()
    console, seconds = Console(), {}
    console.width = max(console.width, 110)
    if options.stage:
        turns = step_parts(Path(options.checkpoint), options.stage)
        runners = [Contestant(name, turn, 0) for name, turn in turns.items()]
        taken = race(runners, options.rounds, warmup=1)
        for name, one in shares_of(taken).items():
            console.print(f"{name:10} {one.median:.0%} [{one.low:.0%}, {one.high:.0%}] of a step")
        console.print(f"a step: {np.median(taken[:, 0] + taken[:, 2]):.3g} seconds")
        return
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
