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

from unicom_jax.core.module import Params
from unicom_jax.interop.atomic import write_text
from unicom_jax.parallel.accelerators import find_accelerator
from unicom_jax.parallel.processes import ProcessGroup, Vote
from unicom_jax.parallel.sharding import place_batch
from unicom_jax.runs.workdir import FACTS
from unicom_jax.training.checkpoint import Position
from unicom_jax.training.clock import Clock, Window
from unicom_jax.training.flops import step_flops
from unicom_jax.training.held_out import Batches, HeldOut
from unicom_jax.training.metrics import MetricWriter, format_note, known, make_progress
from unicom_jax.training.saving import Saver, TrainingError
from unicom_jax.training.state import TrainState, merge, split
from unicom_jax.training.step import Trainer
from unicom_jax.training.stopping import Stopped

# (step, weights for inference) -> numbers and pictures (H, W, 3) uint8 by name.
Observer = Callable[[int, Params], tuple[Mapping[str, float], Mapping[str, np.ndarray]]]
SHARES = (
    "unreadable",
    "broken",
    "overlong",
    "left_over",
    "truncated",
    "further",
)  # of `Loader.counts`


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long to train, and how often to report, save and so on. Counts are in steps; 0 = never.

    Attributes:
      steps: length of the stage.
      log_every: metrics are fetched from the device this often; never 0.
      save_every: checkpoints besides the last one. Kept are the newest `keep`, each `keep_every`th,
        and the `keep_best` with the lowest held-out loss.
      eval_every: held-out loss, on `eval_batches` batches.
      sample_every: calls of the observer; see `train`.
      max_skipped: number of consecutive skipped steps (checked every `log_every`) after which
        training rolls back to the last good checkpoint and continues with the data after them.
      max_rollbacks: number of rollbacks after which training stops instead.
      profile_start, profile_steps: window of a `jax.profiler` trace, counted from the step at which
        this process begins.
    """

    steps: int
    log_every: int = 20
    save_every: int = 1000
    keep: int = 3
    keep_every: int = 0
    keep_best: int = 0
    eval_every: int = 0
    eval_batches: int = 4
    sample_every: int = 0
    max_skipped: int = 20
    max_rollbacks: int = 0
    profile_start: int = 0
    profile_steps: int = 0
    wandb_project: str = ""


def data_shares(
    counts: Counter, before: Counter, group: ProcessGroup | None = None
) -> dict[str, float]:
    """What became of the documents between two states of `Loader.counts`, in all processes.

    `data/<what>`: documents (pictures) that were unreadable, broken, too long or left over by
    packing, that had their caption cut, or that were added to fill rows, relative to those used.
    `data/task/TASK` and `data/source/NAME`: shares of a task and a source in the used documents.
    `data/source_slots/NAME`: share of a source in their slots.
    `data/filled`: share of slots in use. `data/restarts`: restarts of workers that died.
    """
    group, own = group or ProcessGroup(), {name: counts[name] - before[name] for name in counts}
    new: Counter = Counter()
    for counted in group.gather("counts of the data", json.dumps(own)):
        new.update(json.loads(counted))
    shares = {
        f"data/{name}": new[name] / max(new["documents"], 1) for name in SHARES if name in new
    }
    for name in new:
        if name.startswith(("task/", "source/")):
            shares[f"data/{name}"] = new[name] / max(new["documents"], 1)
        if name.startswith("source_slots/"):
            shares[f"data/{name}"] = new[name] / max(new["slots"], 1)
    if new["room"]:
        shares["data/filled"] = new["slots"] / new["room"]
    if new["restarts"]:
        shares["data/restarts"] = new["restarts"]
    return shares


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
    observe: Observer | None = None,
    eval_parts: Mapping[str, Batches] | None = None,
) -> Params:
    """Trains one stage, or resumes it from its directory, and returns the weights for inference.

    All processes of a run call it alike; only the first writes metrics and `stage.json`.

    Args:
      frozen: weights of earlier stages; never donated, never changed.
      batches: host batches from a given one on; must depend on (seed, number) alone.
      directory: STAGE directory; checkpoints, metrics and `stage.json` go there.
      init_params: start from these instead of random ones (ignored on resume); donated.
      tokens_per_step: for the reported rates.
      group: the processes of the run; by default this one alone.
      asked_to_stop: called after every step; if it is true on one process, all stop.
      observe: called every `sample_every` steps, by all processes alike; its results are written
        with the metrics. It must not keep weights: the next step overwrites them.
      eval_parts: held-out batches of single tasks and sources, see `HeldOut`.

    Raises:
      Stopped: a stop was requested; the last step is saved.
      TrainingError: too many skipped steps in a row, or storage refused the last checkpoint.
      CheckpointError: the checkpoints are all damaged, or belong to another config or seed.
    """
    name = trainer.stage.name

    # ---- position -------------------------------------------------------------------------
    group, vote = group or ProcessGroup(), Vote(trainer.mesh)

    def warn(text: str) -> None:
        console.print(f"! {text}")

    saver = Saver(
        directory / "checkpoints",
        trainer,
        group,
        vote,
        warn,
        save_every=config.save_every,
        keep=config.keep,
        keep_every=config.keep_every,
        keep_best=config.keep_best,
    )
    state, position = saver.newest() or (trainer.init_state(init_params), Position())
    start = position.next_step
    if start >= config.steps:
        console.print(f"{name}: finished at step {start}, nothing to do")
        saver.close()
        return trainer.weights_for_use(state)
    if start:
        console.print(f"{name}: resumes from the checkpoint of step {start}")
        _tell_changed_rate(trainer, state, position, warn)

    # ---- compiled pieces ------------------------------------------------------------------
    step_fn, prepare_fn = trainer.train_step(), trainer.prepare_step()
    inner_steps = trainer.stage.inner_steps
    held_out = HeldOut(trainer, prepare_fn, eval_batches, config.eval_batches, eval_parts)
    accelerator = find_accelerator(jax.devices()[0].device_kind)
    peak, flops = accelerator.flops if accelerator else None, 0.0
    began, first_skipped = time.perf_counter(), int(state.opt_state.total_notfinite)
    active = group.index == 0
    clock = Clock(directory, start, first_skipped, updates=inner_steps, active=active)
    stopping = profiling = False
    first_profiled = start + config.profile_start
    last_profiled = min(first_profiled + config.profile_steps, config.steps)
    metrics: dict[str, Any] = {}
    counts: Counter = Counter()  # the stream's counts at the last report
    loss: float | None = None  # held-out loss, if it was measured at this step

    with (
        # Grain's workers leave shared memory behind unless they are closed.
        closing(batches(start + position.data_offset)) as stream,
        MetricWriter(directory, start, config.wandb_project, active=active) as writer,
        make_progress(console) as progress,
    ):
        bar = progress.add_task(name, total=config.steps, completed=start, note="compiling")
        clock.window = Window()

        while (step := position.next_step) < config.steps:
            # ---- data, and the step itself ------------------------------------------------
            asked, loss = time.perf_counter(), None
            batch = place_batch(next(stream), trainer.mesh)
            clock.window.waited += time.perf_counter() - asked
            batch = prepare_fn(state, frozen, batch)
            if peak and step == start:
                of = trainer.stage
                shares = (float(jax.jit(share)(batch)) for share in (of.predicted, of.visible))
                flops = inner_steps * step_flops(of, frozen, batch, *shares)
            if config.profile_steps and step == first_profiled and not profiling:
                jax.profiler.start_trace(str(writer.folder / "profile"))
                profiling = True
            for _ in range(inner_steps):
                state, metrics = step_fn(state, frozen, batch)
            clock.window.steps += 1
            done = step + 1
            position = dataclasses.replace(position, next_step=done)
            if profiling and done >= last_profiled:
                jax.block_until_ready(metrics)
                jax.profiler.stop_trace()
                profiling = False

            # ---- reports ------------------------------------------------------------------
            if done % config.log_every == 0 or done == config.steps or step == start:
                values = {key: float(value) for key, value in jax.device_get(metrics).items()}
                values = known(values, "loss/")
                # At the same steps whether a run was interrupted or not, so not at its first step.
                at_its_time = done % config.log_every == 0 or done == config.steps
                if at_its_time and values["skipped_in_a_row"] >= config.max_skipped:
                    writer.write(done, values)  # for the report; a rollback drops it
                    state = metrics = None  # memory may not hold two
                    state, position = _go_back(saver, config, name, position, values, warn)
                    writer.go_back(position.next_step)
                    progress.update(bar, completed=position.next_step)
                    counts = stream.counts.copy()
                    clock.go_back(position.next_step, int(state.opt_state.total_notfinite))
                    continue
                saver.look()
                if step > start:  # the first step's rates include compiling
                    values |= clock.window.rates(tokens_per_step, flops, peak)
                values |= clock.report(int(values["skipped_steps"]), compiled=step == start)
                values |= data_shares(stream.counts, counts, group)
                counts = stream.counts.copy()
                values |= {
                    "rollbacks": position.rollbacks,
                    "data_offset": position.data_offset,
                    "failed_saves": saver.failed,
                    "time": time.perf_counter() - began,
                }
                writer.write(done, values)
                progress.update(bar, completed=done, note=format_note(values))
                if progress.disable and (done % (10 * config.log_every) == 0 or step == start):
                    console.print(f"{name} {done}/{config.steps}  {format_note(values)}")
            if config.eval_every and (done % config.eval_every == 0 or done == config.steps):
                jax.block_until_ready(metrics)  # steps under way are not part of evaluation
                with clock.pause("eval"):
                    values = held_out.evaluate(state, frozen)
                writer.write(done, values)
                loss = values["eval/loss"]
            if observe and config.sample_every and done % config.sample_every == 0:
                jax.block_until_ready(metrics)
                with clock.pause("sample"):
                    values, pictures = observe(done, trainer.weights_for_use(state))
                if values:
                    writer.write(done, values)
                writer.show(done, pictures)

            # ---- checkpoints, and an early end that all processes agree on -----------------
            stopping = vote(asked_to_stop()) and done < config.steps
            if config.save_every and done % config.save_every == 0 and done < config.steps:
                if int(metrics["skipped_in_a_row"]):
                    continue  # no checkpoint to roll back to; a stop comes one step later
                if not stopping:
                    clock.keep(done)
                    with clock.pause("save"):
                        saver.save(position, state, loss)
                        writer.keep()
            if stopping:
                break
        batch = held_out = None  # arrays in memory shared with workers, freed before workers end

    # ---- the end --------------------------------------------------------------------------
    seconds = time.perf_counter() - began
    clock.keep(position.next_step)
    if stopping:
        saver.finish(position, state, loss)
        raise Stopped(
            f"{name}: stopped and saved at step {done} of {config.steps}; "
            "run the same command to resume"
        )
    if trainer.stage.finish is not None:
        finished = trainer.stage.finish(trainer.weights_for_use(state), frozen)
        _, measured = split(finished, trainer.stage.freeze)
        state = dataclasses.replace(state, params=merge(state.params, measured))
    saver.finish(position, state, loss)
    weights = trainer.weights_for_use(state)
    facts = {
        "steps": config.steps,
        "resumed_from": start,
        "seconds": seconds,
        "steps_per_second": (config.steps - start) / seconds,
        "tokens_per_second": (config.steps - start) * tokens_per_step / seconds,
        "goodput": clock.goodput,
        "compilations": step_fn.compilations(),
        **({"prepare_compilations": prepare_fn.compilations()} if trainer.stage.prepare else {}),
        **({"best_step": saver.best_step} if config.keep_best else {}),
        **trainer.stage.facts(weights),
    }
    if active:
        _write_facts(directory, trainer, facts)
    return weights


def _go_back(
    saver: Saver,
    config: LoopConfig,
    name: str,
    position: Position,
    values: Mapping[str, float],
    warn: Callable[[str], None],
) -> tuple[TrainState, Position]:
    """The last good state, and the data after the batches that were read; see `Saver.roll_back`.

    Raises:
      TrainingError: there is no state to roll back to, or there were too many rollbacks.
    """
    finite = np.isfinite(values["gradient_norm"])
    kind = "gradients above spike_factor x their median" if finite else "non-finite gradients"
    what = (
        f"{name}: {values['skipped_in_a_row']:.0f} steps in a row up to step {position.next_step} "
        f"had {kind}"
    )
    if position.rollbacks < config.max_rollbacks:
        if found := saver.roll_back(position):
            warn(
                f"{what}; rolls back to step {found[1].next_step} and continues with the data "
                f"after them (rollback {found[1].rollbacks} of {config.max_rollbacks})"
            )
            return found
        what += ", before the first checkpoint"
    elif config.max_rollbacks:
        what += f", after {position.rollbacks} rollbacks"
    saver.close()
    raise TrainingError(
        f"{what}; the last good checkpoint is kept: run the same command with a lower "
        f"--config.{name}.learning_rate and --allow-change"
    )


def _tell_changed_rate(
    trainer: Trainer, state: TrainState, position: Position, warn: Callable[[str], None]
) -> None:
    """Warns if the current settings give another learning rate than those of the checkpoint.

    The schedule is always that of the current settings, over all of `steps`. With twice the steps,
    a cosine that had reached 0 starts again from half its peak. `transfer.for_duration` changes the
    rate together with settings that a position does not record.
    """
    step, before, now = position.next_step, position.learning_rate, trainer.next_rate(state)
    if before is not None and not np.isclose(before, now, rtol=1e-4, atol=0.0):
        warn(
            f"{trainer.stage.name}: the learning rate of step {step} was {before:.3g} when the "
            f"checkpoint was saved and is {now:.3g} now, because steps, learning_rate, schedule, "
            "warmup_steps or tuned_steps changed; training follows the new settings. If "
            "tuned_steps is or was set, b1, b2, eps and weight_decay changed too"
        )


def _write_facts(directory: Path, trainer: Trainer, facts: Mapping[str, Any]) -> None:
    """Writes `stage.json`: facts about this stage for the report."""
    device = jax.devices()[0]
    weights = trainer.stage.module.abstract()

    def sizes(tree: Params) -> dict[str, int]:
        return {
            part: sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(of))
            for part, of in tree.items()
        }

    about = {
        "stage": trainer.stage.name,
        "parameters": sizes(weights),
        "trained": sizes(split(weights, trainer.stage.freeze)[0]),
        "freeze": list(trainer.stage.freeze),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        **facts,
    }
    write_text(directory / FACTS, json.dumps(about, indent=2))
