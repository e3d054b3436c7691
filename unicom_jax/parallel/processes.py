"""Several processes as one run: their meeting point, their start, and waiting for each other.

Flags set the meeting point, else the environment does: variables of JAX, Kubernetes' indexed jobs,
SLURM's `srun`, or a TPU pod, which JAX itself queries. A single process needs none of this. All
waiting has a time limit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import socket
import sys
import threading
from collections.abc import Iterator, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from orbax.checkpoint import multihost

from unicom_jax.parallel.watch import LOST_STATUS, Watch

PORT = 8476  # used if only a host is named
# A row counts only if it sets the number of processes: a job's index alone may number other runs.
FLAGS = ("--coordinator", "--processes", "--process")
VARIABLES = (  # in the order of the flags
    ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
    ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JOB_COMPLETION_INDEX"),
    ("SLURM_STEP_NODELIST", "SLURM_STEP_NUM_TASKS", "SLURM_PROCID"),
)
SHUTDOWN_SECONDS = 60  # finished processes leave together, within this time
LOST = "Connection closed by peer|Connection reset by peer|heartbeat|oordination service"


class ProcessError(Exception):
    """Processes that do not find, or do not wait for, each other. One line that names the fix."""


class LostError(ProcessError):
    """Another process is gone. The last checkpoint is kept; all processes must be restarted."""

    exit_status = LOST_STATUS


@dataclasses.dataclass(frozen=True)
class Meeting:
    """Where the processes of a run meet, and which one this is.

    Attributes:
      coordinator: HOST:PORT of process 0. None: JAX asks the TPU pod for all of this.
      devices: the local accelerators that this process uses; None: all.
    """

    coordinator: str | None = None
    processes: int | None = None
    process: int | None = None
    devices: tuple[int, ...] | None = None


def find_meeting(
    environment: Mapping[str, str],
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    tpu: bool | None = None,
) -> Meeting | None:
    """Where to meet; None for a single process. Arguments take precedence over the environment.

    Args:
      tpu: whether to ask a TPU pod if nothing else is set; None: if JAX has found TPUs.

    Raises:
      ProcessError: one of the three values is missing, not a number, or out of range.
    """
    rows = [row for row in VARIABLES if row[1] in environment]
    rows = [row for row in rows if row[2] in environment] or rows
    if rows:
        names = rows[0]
        coordinator = _host(environment, names[0]) if coordinator is None else coordinator
        processes = _whole(environment, names[1]) if processes is None else processes
        process = _whole(environment, names[2]) if process is None else process
    if processes == 1:
        return None
    values = (coordinator, processes, process)
    if values == (None, None, None):
        found = "tpu" in (jax.config.jax_platforms or "")  # JAX writes it there by itself
        return Meeting() if (found if tpu is None else tpu) else None
    if None in values:
        at = values.index(None)
        variable = f" or the variable {rows[0][at]}" if rows else ""
        raise ProcessError(
            "several processes need --coordinator, --processes and --process; give "
            f"{FLAGS[at]}{variable}"
        )
    if not 0 <= process < processes:
        raise ProcessError(f"process {process} is not one of {processes}; count --process from 0")
    coordinator = coordinator if ":" in coordinator else f"{coordinator}:{PORT}"
    if not coordinator.rpartition(":")[2].isdecimal():
        raise ProcessError(f"--coordinator={coordinator} names no port; write HOST:PORT")
    return Meeting(coordinator, processes, process, _own_devices(environment))


def _whole(environment: Mapping[str, str], name: str) -> int | None:
    if name not in environment:
        return None
    if not environment[name].isdecimal():
        raise ProcessError(f"the variable {name} is {environment[name]!r}, not a whole number")
    return int(environment[name])


def _host(environment: Mapping[str, str], name: str) -> str | None:
    """The coordinator; for SLURM's `node[003-005,7],other` the first node, with the job's port."""
    if name != "SLURM_STEP_NODELIST" or name not in environment:
        return environment.get(name)
    first = re.match(r"([^,\[]+)(?:\[([^\],-]+))?", environment[name])
    port = 61440 + int(environment.get("SLURM_JOB_ID", 0)) % 4096  # two jobs may share a node
    return f"{first[1]}{first[2] or ''}:{port}" if first else None


def _own_devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """SLURM: each of several tasks on a node takes one GPU, unless it sees only one anyway."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "1").split("(")[0].split(",")[0]
    visible = environment.get("CUDA_VISIBLE_DEVICES", "")
    shared = tasks != "1" and visible.count(",") > 0
    local = _whole(environment, "SLURM_LOCALID")
    return (local,) if shared and local is not None else None


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """The processes of a run as seen by one of them. By default there is only one.

    Attributes:
      timeout: seconds that it waits for the others.
      lost_after: seconds without a heartbeat after which a process counts as lost.
    """

    index: int = 0
    count: int = 1
    timeout: float = 600.0
    lost_after: float = 60.0

    def barrier(self, what: str) -> None:
        """Returns when all processes have arrived here.

        Raises:
          ProcessError: one did not arrive in time; the message names it.
        """
        if self.count == 1:
            return
        client = multihost.get_jax_distributed_client()
        try:
            client.wait_at_barrier(f"unicom: {what}", int(self.timeout * 1000))
        except RuntimeError as error:
            raise ProcessError(self._late(what, str(error))) from None

    def _late(self, what: str, error: str) -> str:
        if "timed out" not in error:
            return f"{what}: a process is gone ({error.splitlines()[0][:200]}); see its log"
        named = re.findall(r"\d+", error.partition("task names:")[2].partition("RPC")[0])
        return (
            f"{what}: waited {self.timeout:g} s, but process {', '.join(named) or '?'} of "
            f"{self.count} did not come; see its log, then start all of them again"
        )

    def gather(self, what: str, text: str) -> list[str]:
        """The texts of all processes, in their order.

        Raises:
          ProcessError: as `barrier`.
        """
        if self.count == 1:
            return [text]
        client, folder = multihost.get_jax_distributed_client(), f"unicom/{what}"
        client.key_value_set(f"{folder}/{self.index}", text, allow_overwrite=True)
        self.barrier(what)
        texts = [client.key_value_try_get(f"{folder}/{index}") for index in range(self.count)]
        self.barrier(f"{what}, read")  # so that nobody writes the next texts yet
        return texts

    @contextlib.contextmanager
    def first_before_others(self, what: str) -> Iterator[None]:
        """Process 0 runs the body; when it has finished, the others run it."""
        if self.index:
            self.barrier(what)
        yield
        if not self.index:
            self.barrier(what)

    @contextlib.contextmanager
    def noticing_loss(self) -> Iterator[None]:
        """Within this context, one line reports the loss of another process: from the watch, which
        then ends this process with `LOST_STATUS`, or in place of the device runtime's many lines.

        Raises:
          LostError: the device runtime was the first to notice.
        """
        if self.count == 1:
            yield
            return
        client = multihost.get_jax_distributed_client()
        with Watch(client, self.index, self.count, self.lost_after) as watch:
            try:
                yield
            except jax.errors.JaxRuntimeError as error:
                if not re.search(LOST, str(error)):
                    raise
                missing = ", ".join(map(str, watch.missing()))
                who = f"process {missing} of {self.count} is gone" if missing else "one is gone"
                watch.wait_for_others()
                reason = str(error).splitlines()[0][:200]
                raise LostError(
                    f"{who} ({reason}); see its log, then start all of them again"
                ) from error

    def leave(self, status: int) -> None:
        """Ends a process that has failed, at once if there are several: an orderly exit would wait
        for the others, which wait for its devices."""
        if self.count > 1:
            sys.stdout.flush()
            os._exit(status)


def start(
    meeting: Meeting | None, timeout: float = 600.0, lost_after: float = 60.0
) -> ProcessGroup:
    """Connects this process with the others. Call it before anything asks for a device.

    If they do not all arrive in time, the process exits here, with one line and status 1: the
    connecting call cannot be interrupted, and would itself end the process with a stack trace.

    Raises:
      ProcessError: the connection fails for another reason.
    """
    if meeting is None:
        return ProcessGroup(timeout=timeout)
    # Signals are ours (training/stopping.py); JAX's own service would take SIGTERM from Python.
    jax.config.update("jax_enable_preemption_service", False)
    watch = threading.Timer(timeout, _give_up, (meeting, timeout))
    watch.daemon = True
    watch.start()
    try:
        jax.distributed.initialize(
            meeting.coordinator,
            meeting.processes,
            meeting.process,
            meeting.devices,
            cluster_detection_method="deactivate" if meeting.coordinator else None,
            initialization_timeout=int(timeout) + 60,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
            heartbeat_timeout_seconds=int(lost_after) + 40,  # ours report first, and more clearly
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise ProcessError(f"the processes could not be connected: {reason}") from error
    finally:
        watch.cancel()
    return ProcessGroup(jax.process_index(), jax.process_count(), timeout, lost_after)


def _give_up(meeting: Meeting, timeout: float) -> None:
    who = "" if meeting.process is None else f"process {meeting.process} of {meeting.processes}: "
    where = meeting.coordinator or "the TPU pod's coordinator"
    reason = f"not all processes have come to {where}; see their logs, or raise --process-timeout"
    if meeting.process:
        host, _, port = meeting.coordinator.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            reason = f"process 0 does not answer at {where} ({error}); is it there, and reachable?"
    print(f"unicom: {who}waited {timeout:g} s, {reason}", file=sys.stderr, flush=True)
    os._exit(1)


class Vote:
    """Whether any process has raised a flag; all of them learn it at the same call.

    With several processes the answer is that of the previous call: it is computed in the devices'
    own queue, so that no device waits for a host.
    """

    def __init__(self, mesh: Mesh) -> None:
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._hands = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._any = jax.jit(lambda hands: hands.any(), out_shardings=everywhere)
        self._size = mesh.size
        self._earlier: jax.Array | bool = False

    def __call__(self, raised: bool) -> bool:
        if jax.process_count() == 1:
            return raised
        earlier, self._earlier = self._earlier, self._send(raised)
        return bool(earlier)

    def now(self, raised: bool) -> bool:
        """The answer to this call itself; waits for the devices."""
        return raised if jax.process_count() == 1 else bool(self._send(raised))

    def _send(self, raised: bool) -> jax.Array:
        hands = jax.make_array_from_callback(
            (self._size,), self._hands, lambda index: np.full(1, raised)
        )
        return self._any(hands)
