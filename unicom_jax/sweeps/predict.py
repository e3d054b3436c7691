"""What the jobs of a plan will take, before they start: CPU time, or device time where JAX computes
on an accelerator, and disk space.

Time comes from the best that is known of a job:

    FINISHED    a job of the same work that is done (another seed)
    MEASURED    a few steps of the stage (`measure`)
    COUNTED     on a CPU: the operations of its steps and the speed of the stages that are done,
                else that of this machine's matrix products, of which training at this scale reaches
                about `EFFICIENCY`. Each process adds `START` for imports and compilation
    PLANNED     on an accelerator: the least time of its steps, as `unicom plan` estimates it

What a run takes to be scored is not known before one of that kind was.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from unicom_jax.core.memory import computes_on_cpu
from unicom_jax.core.module import iter_specs
from unicom_jax.parallel.mesh import make_mesh
from unicom_jax.planning.estimate import estimate_stage
from unicom_jax.planning.program import assume_flux, make_program
from unicom_jax.runs.stages import PARTS, spec_of
from unicom_jax.sweeps.devices import seen_topology
from unicom_jax.sweeps.outcomes import DONE
from unicom_jax.sweeps.plan import STAGE, Job, Plan
from unicom_jax.training.flops import step_flops

# Where the time of a job comes from, in words.
FINISHED = "from finished ones"
MEASURED = "from measured steps"
COUNTED = "by their operations"
PLANNED = "from the plan of their steps"
NOTHING, UNKNOWN = "nothing to compute", "unknown"
EFFICIENCY = 0.1  # share of the speed of large matrix products
START = 15.0  # CPU seconds of a process besides its steps
PROBE = 1024  # side of the matrices whose product is timed


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of a job. `seconds`: of CPU or device time; None where nothing is known. `source`: where they
    come from, such as FINISHED."""

    seconds: float | None
    source: str
    nbytes: int


def unit_of_time() -> str:
    """The key of an outcome that has the time which is predicted."""
    return "cpu_seconds" if computes_on_cpu() else "device_seconds"


def finished_seconds(
    outcomes: Mapping[str, Mapping[str, Any]], jobs: Mapping[str, Job]
) -> dict[str, float]:
    """The mean time of jobs that are done, by `Job.alike`; arguments as for `predict`."""
    unit, found = unit_of_time(), {}
    for id, one in outcomes.items():
        if one.get("status") == DONE and unit in one:
            found.setdefault(jobs[id].alike, []).append(one[unit])
    return {name: statistics.fmean(seconds) for name, seconds in found.items()}


def flops_per_step(config: ConfigDict, label: str) -> float | None:
    """Operations of a step of a stage (`training/flops.py`), all pairs of a row's slots included;
    None where they cannot be counted without running it."""
    if spec_of(label).samples:
        return None
    program = make_program(config, label, make_mesh(config.mesh))
    stage = program.stage
    return stage.inner_steps * step_flops(stage, program.frozen, program.batch)


def predict(
    plan: Plan,
    outcomes: Mapping[str, Mapping[str, Any]],
    jobs: Mapping[str, Job],
    measured: Mapping[str, float],
) -> dict[str, Cost]:
    """The cost of each job of a plan, by id.

    Args:
      outcomes: of jobs that ended, by id.
      jobs: those jobs; they may be of another plan in the same folder.
      measured: seconds by `Job.alike`, as `measure.read_measured` gives them.
    """
    finished = finished_seconds(outcomes, jobs)
    known = {name: (seconds, MEASURED) for name, seconds in measured.items()}
    known |= {name: (seconds, FINISHED) for name, seconds in finished.items()}
    done = [id for id, found in outcomes.items() if found.get("status") == DONE]
    rate = functools.cache(lambda: _rate([outcomes[id] for id in done if jobs[id].kind == STAGE]))
    costs = {}
    for id, job in plan.jobs.items():
        config = job.configuration()
        nbytes = _bytes(config, job) if job.kind == STAGE else 0
        if job.alike not in known:
            if job.kind != STAGE:
                known[job.alike] = (None, UNKNOWN) if job.split else (0.0, NOTHING)
            elif unit_of_time() == "cpu_seconds":
                known[job.alike] = _counted(config, job.label, rate)
            else:
                known[job.alike] = _planned(config, job.label)
        costs[id] = Cost(*known[job.alike], nbytes)
    return costs


def _counted(config: ConfigDict, label: str, rate: Callable[[], float]) -> tuple[float | None, str]:
    """The seconds of a stage by its operations."""
    if (flops := flops_per_step(config, label)) is None:
        return None, UNKNOWN
    return START + config[spec_of(label).name].steps * flops / rate(), COUNTED


def _planned(config: ConfigDict, label: str) -> tuple[float | None, str]:
    """The least seconds of a stage, times devices, on the accelerators that are here."""
    spec, topology = spec_of(label), seen_topology()
    if topology is None or spec.samples:
        return None, UNKNOWN
    jax.config.update("jax_platforms", "cpu")  # leaves the accelerators to the jobs
    assume_flux(config)
    least = estimate_stage(config, spec.name, topology).step_seconds
    return config[spec.name].steps * least * topology.devices, PLANNED


def _rate(stages: list[Mapping[str, Any]]) -> float:
    """Operations per CPU second: of stages that are done, else a share of what matrix products
    reach here."""
    counted = [one for one in stages if one["flops_per_step"]]
    seconds = sum(max(one["cpu_seconds"] - START, 1.0) for one in counted)
    if counted:
        return sum(one["steps"] * one["flops_per_step"] for one in counted) / seconds
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
