"""What the jobs of a plan will take, before they start: CPU time and disk space.

CPU time comes from the most similar job that is done: one of the same work (another seed), else a
stage of any kind by its operations, else, where JAX computes on a CPU, the speed of this machine's
matrix products, of which training at this scale reaches about `EFFICIENCY`. Each process adds
`START` for imports and compilation. What a run takes to be scored is not known before one of that
kind was.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from unicom_jax.core.memory import computes_on_cpu
from unicom_jax.core.module import iter_specs
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.planning.program import make_program
from unicom_jax.runs.stages import PARTS, spec_of
from unicom_jax.sweeps.plan import STAGE, Job, Plan
from unicom_jax.training.flops import step_flops

EFFICIENCY = 0.1  # share of the speed of large matrix products
START = 15.0  # CPU seconds of a process besides its steps
PROBE = 1024  # side of the matrices whose product is timed


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a job. `seconds` of CPU time: None where nothing is known. `measured`: on a job of the
    same work."""

    seconds: float | None
    measured: bool
    nbytes: int


def flops_per_step(config: ConfigDict, label: str) -> float | None:
    """Operations of a step of a stage (`training/flops.py`), all pairs of a row's slots included;
    None where they cannot be counted without running it."""
    if spec_of(label).samples:
        return None
    program = make_program(config, label, make_mesh(config.mesh))
    stage = program.stage
    return stage.inner_steps * step_flops(stage, program.frozen, program.batch)


def predict(
    plan: Plan, outcomes: Mapping[str, Mapping[str, Any]], jobs: Mapping[str, Job]
) -> dict[str, Cost]:
    """The cost of each job of a plan, by id.

    Args:
      outcomes: of jobs that ended, by id.
      jobs: those jobs; they may be of another plan in the same folder.
    """
    done = {id: found for id, found in outcomes.items() if found.get("status") == "done"}
    alike: dict[str, list[float]] = {}
    for id, found in done.items():
        alike.setdefault(jobs[id].alike, []).append(found["cpu_seconds"])
    rate = functools.cache(lambda: _rate([done[id] for id in done if jobs[id].kind == STAGE]))
    counted: dict[str, float | None] = {}
    costs = {}
    for id, job in plan.jobs.items():
        config = job.configuration()
        nbytes = _bytes(config, job) if job.kind == STAGE else 0
        if job.alike in alike:
            costs[id] = Cost(statistics.fmean(alike[job.alike]), True, nbytes)
            continue
        if job.kind != STAGE:
            costs[id] = Cost(None if job.split else 0.0, False, nbytes)
            continue
        if job.alike not in counted:
            counted[job.alike] = flops_per_step(config, job.label)
        flops, steps = counted[job.alike], config[spec_of(job.label).name].steps
        known = flops is not None and rate() is not None
        seconds = START + steps * flops / rate() if known else None
        costs[id] = Cost(seconds, False, nbytes)
    return costs


def _rate(stages: list[Mapping[str, Any]]) -> float | None:
    """Operations per CPU second: of stages that are done, else a share of what matrix products
    reach here; None where they are computed by an accelerator."""
    counted = [one for one in stages if one["flops_per_step"]]
    seconds = sum(max(one["cpu_seconds"] - START, 1.0) for one in counted)
    if counted:
        return sum(one["steps"] * one["flops_per_step"] for one in counted) / seconds
    if not computes_on_cpu():
        return None
    matrix = jnp.ones((PROBE, PROBE))
    product = jax.jit(lambda x: x @ x)
    product(matrix).block_until_ready()
    began = time.process_time()
    for _ in range(4):
        product(matrix).block_until_ready()
    return EFFICIENCY * 4 * 2 * PROBE**3 / max(time.process_time() - began, 1e-6)


def _bytes(config: ConfigDict, job: Job) -> int:
    """Of the checkpoints of a stage: weights, two moments and the average, where there is one."""
    settings = config[spec_of(job.label).name]
    module = PARTS[spec_of(job.label).part].build(config)
    weights = 4 * sum(math.prod(spec.shape) for _, spec in iter_specs(module.specs()))
    times = math.ceil(settings.steps / settings.save_every) if settings.save_every else 1
    return weights * (3 + (settings.ema_decay > 0)) * min(times, settings.keep)
