"""What a stage takes, from a few of its steps: `unicom sweep run --measure`.

Each distinct stage is begun as its job would begin it, with its own data and its own weights, in a
process and a folder of its own; the stages before it are there with random weights. A process that
has to compile programs ends early and is followed by another one, which finds them in the cache of
the sweep as its jobs will. Held-out evaluation and drawings during training are measured apart and
count as often as they come in the whole stage. What a stage does once at its end (statistics of
latents) and checkpoints besides the last one do not count.

    WORKDIR/measured/ALIKE.json    what a job of this work takes
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import jax
import rich.console
from ml_collections import ConfigDict

from unicom_jax.config import to_json
from unicom_jax.core.memory import computes_on_cpu
from unicom_jax.core.paths import as_path, is_remote
from unicom_jax.evaluation.while_training import Observer, make_observer
from unicom_jax.interop.atomic import write_text
from unicom_jax.runs.checkpoint import save_import
from unicom_jax.runs.compiler import prepare_compiler
from unicom_jax.runs.configuration import open_run
from unicom_jax.runs.imported import on_this_host
from unicom_jax.runs.initial import initial_params
from unicom_jax.runs.released import build_stage
from unicom_jax.runs.stages import seed_of, spec_of
from unicom_jax.runs.start import start_run
from unicom_jax.runs.workdir import CONFIG, read_json
from unicom_jax.sweeps.plan import STAGE, Job, Plan
from unicom_jax.sweeps.predict import flops_per_step, unit_of_time
from unicom_jax.sweeps.work import cache_of, cpu_seconds, reason_of
from unicom_jax.training.run import run_stages
from unicom_jax.training.stopping import Stopped

FOLDER = "measured"  # in a sweep's workdir
MISSED = "/jax/compilation_cache/cache_misses"  # JAX has compiled a program and kept it
APART = 2  # every second step is followed by an evaluation and a drawing, where a stage has them
PATIENCE = APART  # steps of a process that compiles: until the first evaluation
TRIES = 3  # processes of a stage, the last of which is measured even if it compiles
LEAST, MOST, SECONDS = 5, 50, 3.0  # steps that are measured: more until they took these seconds


class NotMeasured(Exception):
    """A stage could not be measured. One line that says why."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """A job, by a few of its steps.

    Attributes:
      seconds: of CPU or device time, as `unit` says; of the whole job.
      step_seconds: of one step.
      steps: that were measured.
      unit: as of `unit_of_time`.
      compiled: programs that were not in the cache.
    """

    seconds: float
    step_seconds: float
    steps: int
    unit: str
    compiled: int


# ---- the runner --------------------------------------------------------------------------------


def measure_stages(
    plan: Plan, workdir: Path, console: rich.console.Console, known: Collection[str] = ()
) -> None:
    """Measures each distinct stage of a plan and keeps what it found in `workdir`. One that cannot
    be measured is named with the reason.

    Args:
      known: `Job.alike` of stages that need not be measured.
    """
    known = {*known, *read_measured(workdir, plan)}
    stages = {job.alike: job for job in plan.jobs.values() if job.kind == STAGE}
    stages = {alike: job for alike, job in stages.items() if alike not in known}
    if stages:
        console.print(f"measuring {len(stages)} {'stage' if len(stages) == 1 else 'stages'}")
    for job in stages.values():
        try:
            found = _measured(job, workdir)
        except NotMeasured as error:
            console.print(f"! {job.alike} is not measured: {error}", soft_wrap=True, markup=False)
            continue
        path = workdir / FOLDER / f"{job.alike}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(dataclasses.asdict(found), indent=1))
        console.print(
            f"{job.alike}: {found.step_seconds:.3g} s a step by {found.steps} steps", soft_wrap=True
        )


def read_measured(workdir: Path, plan: Plan) -> dict[str, float]:
    """The seconds of jobs that were measured here, by `Job.alike`."""
    found = {}
    for alike in dict.fromkeys(job.alike for job in plan.jobs.values() if job.kind == STAGE):
        path = workdir / FOLDER / f"{alike}.json"
        if path.is_file():
            one = Measured(**read_json(path, ValueError, "remove it"))
            if one.unit == unit_of_time():
                found[alike] = one.seconds
    return found


def _measured(job: Job, workdir: Path) -> Measured:
    for patience in (*[PATIENCE] * (TRIES - 1), MOST):
        found = _in_process(job, workdir, patience)
        if not found.compiled:
            break
    return found


def _in_process(job: Job, workdir: Path, patience: int) -> Measured:
    """Measures in a new process, whose memory is free afterwards; `patience` as of `Meter`."""
    command = [sys.executable, "-m", "unicom_jax.sweeps.measure", str(workdir), str(patience)]
    given = json.dumps(dataclasses.asdict(job))
    done = subprocess.run(command, input=given, capture_output=True, text=True)
    if done.returncode == 0:
        return Measured(**json.loads(done.stdout.splitlines()[-1]))
    if done.returncode != 1:  # killed, for example for its memory
        raise NotMeasured(f"its process ended with exit status {done.returncode}")
    raise NotMeasured(done.stderr.strip().splitlines()[-1])


# ---- the process that measures -----------------------------------------------------------------


class Meter:
    """Takes the time after each step of a stage, and ends it after a few of them.

    Args:
      steps: length of the stage.
      patience: steps after which it ends if programs were compiled.
      now: gives the time.

    Attributes:
      marks: time after the first step, the second one, and so on.
      observed: time of each drawing.
      compiled: programs that were not in the cache.
    """

    def __init__(self, steps: int, patience: int, now: Callable[[], float]) -> None:
        self.marks: list[float] = []
        self.observed: list[float] = []
        self.compiled = 0
        # A stage that ends by itself evaluates once more, which would count as a step.
        self._most, self._patience = min(MOST, max(steps - 1, 2)), patience
        self._now, self._begun, self._parent = now, False, os.getppid()
        jax.monitoring.register_event_listener(self._hear)

    def _hear(self, event: str, **_: Any) -> None:
        self.compiled += event == MISSED

    def asked_to_stop(self) -> bool:
        """`asked_to_stop` of `run_stages`, which calls it before the stage and after each step."""
        if not self._begun:
            self._begun = True
            return False
        self.marks.append(self._now())
        most = min(self._most, self._patience) if self.compiled else self._most
        enough = len(self.marks) >= LEAST and self.marks[-1] - self.marks[0] >= SECONDS
        return enough or len(self.marks) >= most or os.getppid() != self._parent

    def make_observer(self, *of: Any) -> Observer:
        """`make_observer` of `run_stages`."""
        observe = make_observer(*of)

        def timed(*given: Any) -> Any:
            began = self._now()
            found = observe(*given)
            self.observed.append(self._now() - began)
            return found

        return timed


def measure(job: Job, folder: Path, workdir: Path, patience: int) -> Measured:
    """Trains a stage for a few steps in an empty folder; `patience` as of `Meter`.

    Raises:
      NotMeasured: steps were skipped, so that they took less than others.
    """
    on_cpu, wall = computes_on_cpu(), time.perf_counter()
    now = cpu_seconds if on_cpu else (lambda: time.perf_counter() - wall)
    config = job.configuration()
    prepare_compiler(config.xla_flags, folder, cache_of(workdir))
    settings = config[spec_of(job.label).name]
    times = {name: settings.get(f"{name}_every", 0) for name in ("eval", "sample")}
    began = now()
    _begin(config, job, folder)
    unused = now() - began
    meter, console = Meter(settings.steps, patience, now), rich.console.Console(stderr=True)
    config = open_run(folder, None, ())
    with contextlib.suppress(Stopped):
        run_stages(
            config,
            folder,
            console,
            (job.label,),
            asked_to_stop=meter.asked_to_stop,
            make_observer=meter.make_observer,
        )
    if skipped := _skipped(folder / job.label):
        raise NotMeasured(
            f"{skipped} of {len(meter.marks)} steps were skipped because of their gradients"
        )
    flops_per_step(config, job.label)  # a job counts them for its outcome
    seconds, step_seconds = extrapolate(
        meter.marks,
        meter.observed,
        now() - unused,
        steps=settings.steps,
        evaluations=-(-settings.steps // times["eval"]) if times["eval"] else 0,
        drawings=settings.steps // times["sample"] if times["sample"] else 0,
    )
    devices = 1 if on_cpu else jax.device_count()
    return Measured(
        seconds * devices, step_seconds, len(meter.marks), unit_of_time(), meter.compiled
    )


def _begin(config: ConfigDict, job: Job, folder: Path) -> None:
    """A workdir in which the stages before a job's have random weights. The settings of the stage
    are changed in what alters no program."""
    settings = config[spec_of(job.label).name]
    settings.update({"log_every": 1, "save_every": 0, "keep_best": 0, "profile_steps": 0})
    for name in ("eval_every", "sample_every"):
        if settings.get(name, 0):
            settings[name] = APART
    config.wandb_project = ""
    if computes_on_cpu():
        config.data.workers = 0  # the time of worker processes is not seen before they end
    if not job.inputs:
        write_text(folder / CONFIG, to_json(config))
        return
    start_run(config, folder)
    for label in job.inputs:
        specs = build_stage(config, label).specs()
        params = initial_params(specs, [], seed_of(config, label), on_this_host)
        save_import(folder / label / "checkpoints", params)


def _skipped(folder: Path) -> int:
    """Steps of a stage without an update."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return max(int(json.loads(line).get("skipped_steps", 0)) for line in lines)


def extrapolate(
    marks: Sequence[float],
    observed: Sequence[float],
    total: float,
    *,
    steps: int,
    evaluations: int,
    drawings: int,
) -> tuple[float, float]:
    """The time of a whole stage, and that of one of its steps.

    Args:
      marks: time after each of the first steps, and after the evaluation and the drawing that come
        with every `APART`th one if the stage has any; the first of each is slower than others.
      observed: time of each drawing.
      total: time until the end, with these steps alone.
      steps, evaluations, drawings: of the whole stage.
    """
    gaps = [after - before for before, after in itertools.pairwise(marks)]  # from the second step
    besides = bool(evaluations or drawings)
    plain = gaps[1::APART] if besides else gaps
    step = fmean(plain or gaps) if gaps else 0.0
    drawn = [*observed, *[0.0] * len(gaps)]
    evaluated = [max(gap - step - one, 0.0) for gap, one in zip(gaps[::APART], drawn, strict=False)]
    evaluated = evaluated if evaluations else []
    total -= sum(evaluated) + sum(observed)
    total += _of(evaluated, evaluations) + _of(observed, drawings)
    return total + (steps - len(marks)) * step, step


def _of(found: Sequence[float], times: int) -> float:
    """The time of something that comes so many times, from the first few of them."""
    if not found or not times:
        return 0.0
    return found[0] + (times - 1) * fmean(found[1:] or found)


def main(arguments: Sequence[str], given: Mapping[str, Any]) -> None:
    """python -m unicom_jax.sweeps.measure WORKDIR PATIENCE < JOB: prints a `Measured` as JSON."""
    workdir, patience = as_path(arguments[0]), int(arguments[1])
    where = None if is_remote(workdir) or not workdir.is_dir() else workdir
    try:
        with tempfile.TemporaryDirectory(prefix="measuring-", dir=where) as folder:
            found = measure(Job(**given), Path(folder), workdir, patience)
    except Exception as error:
        traceback.print_exc()
        sys.exit(reason_of(error))
    print(json.dumps(dataclasses.asdict(found)))


if __name__ == "__main__":
    main(sys.argv[1:], json.load(sys.stdin))
