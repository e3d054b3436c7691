"""Where jobs are done. An engine starts `work.work` somewhere and says how it ended, no more.

All of them need the sweep's folder on a file system that they share, or in an object store.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from unicom_jax.config import ConfigError
from unicom_jax.core.paths import as_path, is_remote
from unicom_jax.runs.lock import is_taken_over
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
from unicom_jax.training.spool import Spool

LOOK = 0.2  # seconds between two looks at what runs


class Handle(Protocol):
    """A job under way."""

    def poll(self) -> str | None:
        """Its status, None while it runs."""

    def stop(self) -> None:
        """Asks it to save and end."""


Submit = Callable[[Path, str], Handle]  # the sweep's folder, a job's id


def lost(workdir: Path, id: str, how: str) -> str:
    """The status of a job whose process ended without saying how: failed, if it is not done."""
    before = read_outcome(workdir, id)
    if before.get("status") == DONE:  # it crashed as it ended, or another process did the job
        return DONE
    spent = {"cpu_seconds": 0.0, "seconds": 0.0}
    spent |= {name: before[name] for name in (*spent, "device_seconds") if name in before}
    write_outcome(workdir, id, status=FAILED, reason=how, **spent)
    return FAILED


# ---- processes of this machine -----------------------------------------------------------------


class _Process:
    def __init__(self, workdir: Path, id: str) -> None:
        self._of, self._stopped, self._began = (workdir, id), False, time.time()
        self._log = workdir / "logs" / f"{id}.log"
        self._log.parent.mkdir(exist_ok=True)
        self._logs = Spool(self._log.parent, (self._log.name,))
        command = [sys.executable, "-m", "unicom_jax.sweeps.work", str(workdir), id]
        with (self._logs.folder / self._log.name).open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def poll(self) -> str | None:
        code = self._process.poll()
        if code is None:
            self._logs.push()
            return None
        self._logs.close()
        if code == -signal.SIGINT or (self._stopped and code == -signal.SIGTERM):
            return STOPPED  # a run that is scored cannot save: it begins again
        status = STATUSES.get(code)
        # Python exits with the code of a job that failed when it does not get that far.
        if status == FAILED and read_outcome(*self._of).get("at", 0.0) < self._began:
            status = None
        if status is not None:
            return status
        ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        return lost(*self._of, f"its process ended with {ended}; see {self._log}")

    def stop(self) -> None:
        self._stopped = True
        self._process.terminate()


@contextlib.contextmanager
def local() -> Iterator[Submit]:
    """A process a job on this machine."""
    yield _Process


# ---- Ray ---------------------------------------------------------------------------------------


class _Task:
    def __init__(self, task: Any, workdir: Path, id: str) -> None:
        self._of, self._stopped = (workdir, id), False
        self._result = task.remote(str(workdir.resolve()), id)

    def poll(self) -> str | None:
        import ray

        ready, _ = ray.wait([self._result], timeout=0)
        if not ready:
            return None
        try:
            return ray.get(self._result)
        except ray.exceptions.RayError as error:
            if self._stopped:
                return STOPPED
            return lost(*self._of, f"Ray: {str(error).strip().splitlines()[-1]}")

    def stop(self) -> None:
        import ray

        self._stopped = True
        ray.cancel(self._result)


def _in_process(workdir: str, id: str) -> str:
    """A job in a process of its own, as on this machine; a task that is cancelled lets it save."""
    process, stopped = _Process(as_path(workdir), id), False
    while True:
        try:
            while (status := process.poll()) is None:
                time.sleep(LOOK)
            return status
        except KeyboardInterrupt:
            if not stopped:
                process.stop()
            stopped = True


@contextlib.contextmanager
def ray_tasks() -> Iterator[Submit]:
    """One Ray task per job, on the cluster of RAY_ADDRESS, else on a new one of this machine.

    UNICOM_RAY holds options of `ray.remote`, such as "num_cpus=8 num_gpus=1"; by default a task
    asks for one core.

    Raises:
      ConfigError: no cluster at RAY_ADDRESS, or UNICOM_RAY names no option of a task.
    """
    import ray

    # Ray must not retry: the runner decides that.
    options = {"num_cpus": 1, "max_retries": 0, **_settings("UNICOM_RAY")}
    try:
        task = ray.remote(**options)(_in_process)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"UNICOM_RAY: {' '.join(str(error).split())}") from error
    address = os.environ.get("RAY_ADDRESS")
    try:
        ray.init(address or "local", log_to_driver=False)
    except ConnectionError as error:
        raise ConfigError(
            f"RAY_ADDRESS={address}: no Ray cluster answers; start it with ray start --head, or "
            "unset the variable for one on this machine"
        ) from error
    try:
        yield lambda workdir, id: _Task(task, workdir, id)
    finally:
        ray.shutdown()


# ---- SLURM -------------------------------------------------------------------------------------


class _Submitted:
    def __init__(self, executor: Any, workdir: Path, id: str) -> None:
        self._of, self._stopped, self._name = (workdir, id), False, secrets.token_hex(8)
        self._job = executor.submit(_work, str(workdir.resolve()), id, self._name)

    def poll(self) -> str | None:
        if not self._job.done():
            return None
        if error := self._job.exception():
            if self._stopped:
                return STOPPED
            if is_taken_over(claim_of(*self._of), self._name):
                return BUSY
            return lost(*self._of, f"SLURM: {str(error).strip().splitlines()[-1]}")
        return self._job.result()

    def stop(self) -> None:
        self._stopped = True
        self._job.cancel()


def _work(workdir: str, id: str, name: str) -> str:
    from unicom_jax.sweeps.work import work  # heavy, and needed where the job runs alone

    return work(as_path(workdir), id, name=name)


@contextlib.contextmanager
def slurm() -> Iterator[Submit]:
    """A SLURM job a job, through submitit. UNICOM_SLURM holds its parameters as submitit names
    them, such as "slurm_partition=gpu gpus_per_node=1 timeout_min=120", and with "cluster=local"
    submitit starts processes of this machine instead. Submitit's own files need a folder that all
    nodes see: logs/slurm of the sweep, and of one in an object store runs/sweeps/NAME.

    Raises:
      ConfigError: this machine cannot submit SLURM jobs.
    """
    import submitit

    parameters = _settings("UNICOM_SLURM")
    cluster = parameters.pop("cluster", "slurm")
    # submitit itself would do the jobs on this machine without a word.
    if cluster == "slurm" and shutil.which("srun") is None:
        raise ConfigError(
            "--engine=slurm: srun is not on this machine's PATH; run the command on a login node, "
            "or use --engine=local"
        )

    def submit(workdir: Path, id: str) -> _Submitted:
        folder = Path("runs", "sweeps", workdir.name) if is_remote(workdir) else workdir
        executor = submitit.AutoExecutor(folder=folder / "logs" / "slurm", cluster=cluster)
        executor.update_parameters(**{"name": id, "timeout_min": 24 * 60, **parameters})
        return _Submitted(executor, workdir, id)

    yield submit


def _settings(variable: str) -> dict[str, int | float | str]:
    """What an environment variable holds as "name=value name=value".

    Raises:
      ConfigError: it holds something else.
    """
    found: dict[str, int | float | str] = {}
    for one in os.environ.get(variable, "").split():
        name, equals, text = one.partition("=")
        if not (name and equals and text):
            raise ConfigError(
                f"{variable}: {one!r} is not of the form name=value; separate several by spaces"
            )
        try:
            number = float(text)
            found[name] = int(number) if text.isdecimal() else number
        except ValueError:
            found[name] = text
    return found


ENGINES: dict[str, Callable[[], contextlib.AbstractContextManager[Submit]]] = {
    "local": local,
    "ray": ray_tasks,
    "slurm": slurm,
}
PACKAGES = {"ray": "ray", "slurm": "submitit"}  # what an engine needs besides
