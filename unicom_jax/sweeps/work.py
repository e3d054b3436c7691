"""One job, from its description to its outcome: what every engine runs, wherever it runs it.

    WORKDIR/jobs/ID.json       what to do
    WORKDIR/claims/ID/.lock    held while a process does it
    WORKDIR/stages|runs/ID/    the folder that it fills, a workdir like any other
    WORKDIR/outcomes/ID.json   how it ended

A job whose lock another process holds is "busy", so that any number of runners share one sweep. In
an object store, where locks age, a process that has lost its lock ends at once, like after a
`kill -9`.
"""

from __future__ import annotations

import importlib.metadata
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import rich.console

from unicom_jax.core.memory import computes_on_cpu
from unicom_jax.core.paths import as_path, cache_folder, is_remote
from unicom_jax.evaluation.command import run_evaluate
from unicom_jax.evaluation.while_training import make_observer
from unicom_jax.runs.compiler import COMPILED, prepare_compiler
from unicom_jax.runs.configuration import open_run
from unicom_jax.runs.lock import LockedError, workdir_lock
from unicom_jax.runs.stages import spec_of
from unicom_jax.sweeps.folders import prepare, used_bytes
from unicom_jax.sweeps.outcomes import (
    BUSY,
    DONE,
    FAILED,
    STATUSES,
    STOPPED,
    claim_of,
    read_outcome,
    write_outcome,
)
from unicom_jax.sweeps.plan import STAGE, Job, read_job
from unicom_jax.sweeps.predict import flops_per_step
from unicom_jax.training.run import run_stages
from unicom_jax.training.stopping import Stopped, stop_signals


def work(
    workdir: Path,
    id: str,
    *,
    asked_to_stop: Callable[[], bool] = lambda: False,
    spent: float | None = None,
    name: str = "",
) -> str:
    """Does a job, unless it is done or another process is at it, and returns its status.

    Args:
      spent: CPU seconds of this process that are not the job's; None: all until now.
      name: of this attempt, as of `is_taken_over`.
    """
    spent = cpu_seconds() if spent is None else spent
    try:
        with workdir_lock(claim_of(workdir, id), lost=_leave, name=name):
            if read_outcome(workdir, id).get("status") == DONE:
                return DONE
            return _attempt(workdir, id, asked_to_stop, spent)
    except LockedError:
        return BUSY


def _leave() -> None:
    """Ends this process, which must not write any more: another one does its job."""
    os._exit(next(code for code, status in STATUSES.items() if status == BUSY))


def _attempt(workdir: Path, id: str, asked_to_stop: Callable[[], bool], spent: float) -> str:
    began = time.perf_counter()
    before = read_outcome(workdir, id)
    facts: dict[str, Any] = {"commit": commit()}
    try:
        job = read_job(workdir, id)
        facts |= _train(workdir, job, asked_to_stop) if job.kind == STAGE else _join(workdir, job)
        status = DONE
    except Stopped as error:
        status, facts["reason"] = STOPPED, str(error)
    except Exception as error:
        traceback.print_exc()
        status, facts["reason"] = FAILED, reason_of(error)
    facts["attempts"] = before.get("attempts", 0) + 1
    facts["cpu_seconds"] = before.get("cpu_seconds", 0.0) + cpu_seconds() - spent
    seconds = time.perf_counter() - began
    facts["seconds"] = before.get("seconds", 0.0) + seconds
    if not computes_on_cpu():
        facts["device_seconds"] = before.get("device_seconds", 0.0) + seconds * jax.device_count()
    write_outcome(workdir, id, status=status, **facts)
    return status


def reason_of(error: Exception) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    ours = type(error).__module__.startswith("unicom_jax")
    return text if ours else f"{type(error).__name__}: {text}"


def _train(workdir: Path, job: Job, asked_to_stop: Callable[[], bool]) -> dict[str, Any]:
    folder = prepare(workdir, job)
    with workdir_lock(folder):
        config = open_run(folder, None, ())
        prepare_compiler(config.xla_flags, folder, cache_of(workdir))
        with stop_signals() as heard:
            run_stages(
                config,
                folder,
                rich.console.Console(width=100),
                (job.label,),
                asked_to_stop=lambda: heard() or asked_to_stop(),
                make_observer=make_observer,
            )
    spec = spec_of(job.label)
    return {
        "steps": config[spec.name].steps,
        "tokens_per_step": spec.tokens_per_step(config, spec.name),
        "flops_per_step": flops_per_step(config, job.label),
        "bytes": used_bytes(folder),
    }


def _join(workdir: Path, job: Job) -> dict[str, Any]:
    folder = prepare(workdir, job)
    if job.split:
        with workdir_lock(folder):
            config = open_run(folder, None, ())
            prepare_compiler(config.xla_flags, folder, cache_of(workdir))
            console = rich.console.Console(width=100)
            run_evaluate(
                folder,
                console,
                split=job.split,
                baseline=job.baseline,
                suites=job.suites or None,
            )
    return {"bytes": used_bytes(folder)}


def cache_of(workdir: Path) -> str | None:
    """Compiled programs are kept for the other seeds; on a CPU for this machine alone, whose make
    of processor they suit. None: JAX_COMPILATION_CACHE_DIR says where."""
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return None
    if not is_remote(workdir):
        return str(workdir / COMPILED / os.uname().nodename)
    return str(cache_folder(COMPILED) if computes_on_cpu() else workdir / COMPILED)


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def commit() -> str:
    """The commit of the code, with "+" behind it where files were changed since; its version where
    it is no checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ("git", "-C", str(root), *arguments)
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() == root:
            changed = git("status", "--porcelain", "--untracked-files=no")
            return git("rev-parse", "--short=12", "HEAD") + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        pass
    return importlib.metadata.version("unicom_jax")


# ---- as a process of its own --------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """python -m unicom_jax.sweeps.work WORKDIR ID: exits with the status of the job. It stops as
    after SIGTERM when the process that started it is gone."""
    workdir, id = arguments
    parent = os.getppid()
    found = work(as_path(workdir), id, asked_to_stop=lambda: os.getppid() != parent, spent=0.0)
    return next(code for code, status in STATUSES.items() if status == found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
