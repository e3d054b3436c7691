"""The training loop. One loop, one state, any stage. Read it top to bottom."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from data_pipelines.loader import Loader
from unicom_jax.core.losses import mean
from unicom_jax.core.module import Params
from unicom_jax.interop import checkpoint as files
from unicom_jax.parallel.accelerators import find_accelerator
from unicom_jax.parallel.processes import ProcessGroup, Vote
from unicom_jax.parallel.sharding import place_batch
from unicom_jax.training import checkpoint
from unicom_jax.training.flops import step_flops
from unicom_jax.training.metrics import MetricWriter, format_note, make_progress
from unicom_jax.training.state import TrainState, merge, split
from unicom_jax.training.step import Trainer
from unicom_jax.training.stopping import Stopped

# First step -> batches from there on, this process's rows.
Batches = Callable[[int], Loader]
LOST = ("broken", "overlong", "left_over", "truncated")  # of `Loader.counts`


class TrainingError(Exception):
    """Training cannot go on. One line that names the cause and the mend."""


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long and how often; all counts are steps, 0 = never.

    Attributes:
      steps: length of the stage.
      log_every: metrics are fetched from the device this often; never 0.
      save_every: checkpoints besides the last one; `keep` of them stay, and each `keep_every`th.
      eval_every: loss on held-out batches, `eval_batches` of them.
      max_skipped: non-finite steps in a row after which training stops.
      profile_start, profile_steps: window of a `jax.profiler` trace, counted from the step at which
        this process begins.
    """

    steps: int
    log_every: int = 20
    save_every: int = 1000
    keep: int = 3
    keep_every: int = 0
    eval_every: int = 0
    eval_batches: int = 4
    max_skipped: int = 20
    profile_start: int = 0
    profile_steps: int = 0
    wandb_project: str = ""


def data_shares(counts: Counter, before: Counter) -> dict[str, float]:
    """What became of the documents between two states of `Loader.counts`.

    `data/<what>`: documents (pictures) that were broken, too long, left over by packing or had
    their caption cut, over those that were used; `data/filled`: share of the slots in use.
    """
    new = Counter({name: counts[name] - before[name] for name in counts})
    shares = {f"data/{name}": new[name] / max(new["documents"], 1) for name in LOST if name in new}
    if new["room"]:
        shares["data/filled"] = new["slots"] / new["room"]
    return shares


@dataclasses.dataclass
class Window:
    """Time and work since the last report."""

    started: float
    waited: float = 0.0
    steps: int = 0

    def rates(self, tokens: int, flops: float, peak: float | None) -> dict[str, float]:
        seconds = time.perf_counter() - self.started
        rates = {
            "steps_per_second": self.steps / seconds,
            "tokens_per_second": self.steps * tokens / seconds,
            "data_wait": self.waited / seconds,
        }
        if peak:
            rates["mfu"] = self.steps * flops / seconds / (peak * jax.device_count())
        return rates


def train(
    trainer: Trainer,
    frozen: Params,
    batches: Batches,
    eval_batches: Batches,
    config: LoopConfig,
    directory: Path,
    console: Console,
    *,
    init_params: Params | None = None,
    tokens_per_step: int = 0,
    group: ProcessGroup | None = None,
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Params:
    """Trains one stage, or goes on where its directory stands, and returns the weights for use.

    All processes of a run call it alike; only the first writes metrics and `stage.json`.

    Args:
      frozen: weights of earlier stages; never donated, never changed.
      batches: host batches from a given step on; must be a function of (seed, step) alone.
      directory: STAGE directory; checkpoints, metrics and `stage.json` go there.
      init_params: start from these instead of random ones (ignored on resume); used up.
      tokens_per_step: for the reported rates.
      group: the processes of the run; by default this one alone.
      asked_to_stop: asked after every step; what one process says holds for all.

    Raises:
      Stopped: somebody asked to stop; the last step is saved.
      TrainingError: too many non-finite steps in a row.
      CheckpointError: the checkpoints are all damaged, or belong to another config or seed.
    """
    name = trainer.stage.name
    manager = files.open_manager(
        directory / "checkpoints", keep=config.keep, keep_every=config.keep_every
    )

    # ---- where we stand -------------------------------------------------------------------
    group = group or ProcessGroup()
    state = checkpoint.restore_newest(
        manager, trainer, lambda text: console.print(f"! {text}"), group
    )
    state = trainer.init_state(init_params) if state is None else state
    start = int(state.step)
    if start >= config.steps:
        console.print(f"{name}: finished at step {start}, nothing to do")
        manager.close()
        return trainer.weights_for_use(state)
    if start:
        console.print(f"{name}: goes on from the checkpoint of step {start}")

    # ---- compiled pieces ------------------------------------------------------------------
    step_fn, eval_fn = trainer.train_step(), trainer.eval_step()
    accelerator = find_accelerator(jax.devices()[0].device_kind)
    peak, flops = accelerator.flops if accelerator else None, 0.0
    held_out: list[Any] | None = None
    began = time.perf_counter()
    stopping = profiling = False
    first_profiled = start + config.profile_start
    last_profiled = min(first_profiled + config.profile_steps, config.steps)
    metrics: dict[str, Any] = {}
    counts: Counter = Counter()  # of the stream, at the last report
    vote = Vote(trainer.mesh)

    with (
        closing(batches(start)) as stream,  # Grain's workers leave shared memory behind otherwise
        MetricWriter(directory, start, config.wandb_project, active=group.index == 0) as writer,
        make_progress(console) as progress,
    ):
        bar = progress.add_task(name, total=config.steps, completed=start, note="compiling")
        window = Window(time.perf_counter())

        for step in range(start, config.steps):
            # ---- data, and the step itself ------------------------------------------------
            asked = time.perf_counter()
            batch = place_batch(next(stream), trainer.mesh)
            window.waited += time.perf_counter() - asked
            if peak and step == start:
                share = float(jax.jit(trainer.stage.predicted)(batch))
                flops = step_flops(trainer.stage, frozen, batch, share)
            if config.profile_steps and step == first_profiled:
                jax.profiler.start_trace(str(directory / "profile"))
                profiling = True
            state, metrics = step_fn(state, frozen, batch)
            window.steps += 1
            done = step + 1
            if profiling and done >= last_profiled:
                jax.block_until_ready(metrics)
                jax.profiler.stop_trace()
                profiling = False

            # ---- reports ------------------------------------------------------------------
            if done % config.log_every == 0 or done == config.steps or step == start:
                values = {key: float(value) for key, value in jax.device_get(metrics).items()}
                _stop_if_diverged(name, done, values, config.max_skipped)
                if step > start:  # the first step's rates are the compiler's
                    values |= window.rates(tokens_per_step, flops, peak)
                values |= data_shares(stream.counts, counts)
                counts = stream.counts.copy()
                values["time"] = time.perf_counter() - began
                writer.write(done, values)
                window = Window(time.perf_counter())
                progress.update(bar, completed=done, note=format_note(values))
                if progress.disable and (done % (10 * config.log_every) == 0 or step == start):
                    console.print(f"{name} {done}/{config.steps}  {format_note(values)}")
            if config.eval_every and (done % config.eval_every == 0 or done == config.steps):
                held_out = held_out or _take(eval_batches, config.eval_batches, trainer)
                values = evaluate(trainer, eval_fn, state, frozen, held_out)
                writer.write(done, values)
                window = Window(time.perf_counter())

            # ---- checkpoints, and an early end that all processes agree on -----------------
            stopping = vote(asked_to_stop()) and done < config.steps
            due = config.save_every and done % config.save_every == 0 and done < config.steps
            if due or stopping:
                checkpoint.save_state(manager, trainer, done, state)
            if stopping:
                break
        batch = held_out = None  # arrays in memory shared with the workers go before these do

    # ---- the end --------------------------------------------------------------------------
    seconds = time.perf_counter() - began
    if stopping:
        manager.wait_until_finished()
        manager.close()
        raise Stopped(
            f"{name}: stopped and saved at step {done} of {config.steps}; the same command goes on"
        )
    if trainer.stage.finish is not None:
        finished = trainer.stage.finish(trainer.weights_for_use(state), frozen)
        _, measured = split(finished, trainer.stage.freeze)
        state = dataclasses.replace(state, params=merge(state.params, measured))
    checkpoint.save_state(manager, trainer, config.steps, state)
    manager.wait_until_finished()
    manager.close()
    weights = trainer.weights_for_use(state)
    facts = {
        "steps": config.steps,
        "resumed_from": start,
        "seconds": seconds,
        "steps_per_second": (config.steps - start) / seconds,
        "tokens_per_second": (config.steps - start) * tokens_per_step / seconds,
        "compilations": step_fn._cache_size(),
        **trainer.stage.facts(weights),
    }
    if group.index == 0:
        _write_facts(directory, trainer, facts)
    return weights


def evaluate(
    trainer: Trainer, eval_fn: Callable, state: TrainState, frozen: Params, batches: list[Any]
) -> dict[str, float]:
    """Mean loss terms over held-out batches, as `eval/<term>`."""
    params = trainer.weights_for_use(state)
    totals: dict[str, Any] = {}
    for batch in batches:
        for term, pair in eval_fn(params, frozen, batch).items():
            totals[term] = jax.tree.map(np.add, totals.get(term, (0.0, 0.0)), jax.device_get(pair))
    return {f"eval/{term}": float(mean(pair)) for term, pair in totals.items()}


def _take(batches: Batches, count: int, trainer: Trainer) -> list[Any]:
    with closing(batches(0)) as stream:
        return [place_batch(next(stream), trainer.mesh) for _ in range(count)]


def _stop_if_diverged(name: str, step: int, values: Mapping[str, float], limit: int) -> None:
    if values["skipped_in_a_row"] >= limit:
        raise TrainingError(
            f"{name}: {values['skipped_in_a_row']:.0f} steps in a row up to step {step} had "
            f"non-finite gradients; lower --config.{name}.learning_rate and start again, the last "
            "good checkpoint is kept"
        )


def _write_facts(directory: Path, trainer: Trainer, facts: Mapping[str, Any]) -> None:
    """`stage.json`: what the report says about this stage."""
    device = jax.devices()[0]
    parts = {
        part: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))
        for part, tree in trainer.stage.module.abstract().items()
    }
    about = {
        "stage": trainer.stage.name,
        "parameters": parts,
        "freeze": list(trainer.stage.freeze),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        **facts,
    }
    (directory / "stage.json").write_text(json.dumps(about, indent=2))
