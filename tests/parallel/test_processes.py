"""Where processes meet, by flags or environment; waiting for each other ends in one clear line."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import jax
import pytest
from orbax.checkpoint import multihost

from tests.parallel.test_watch import SECONDS, Service
from unicom_jax.parallel.processes import (
    LostError,
    Meeting,
    ProcessError,
    ProcessGroup,
    find_meeting,
)

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[003-005,7],other",
    "SLURM_STEP_NUM_TASKS": "5",
    "SLURM_STEP_TASKS_PER_NODE": "1(x5)",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
KUBERNETES = {
    "JAX_COORDINATOR_ADDRESS": "run-workers-0-0.run",
    "JAX_NUM_PROCESSES": "2",
    "JOB_COMPLETION_INDEX": "1",
}
EIGHT_TASKS = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "8(x4),2", "SLURM_LOCALID": "3"}
EIGHT_GPUS = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}


def test_without_flags_and_environment_a_process_is_alone():
    assert find_meeting({}, tpu=False) is None


@pytest.mark.parametrize(
    ("environment", "meeting"),
    [
        (KUBERNETES, Meeting("run-workers-0-0.run:8476", 2, 1)),
        ({**KUBERNETES, "JAX_PROCESS_ID": "0"}, Meeting("run-workers-0-0.run:8476", 2, 0)),
        (SLURM, Meeting("node003:61441", 5, 2)),
        ({**SLURM, "SLURM_STEP_NODELIST": "a-1,b"}, Meeting("a-1:61441", 5, 2)),
        ({**SLURM, "SLURM_STEP_NODELIST": "n[7,9]"}, Meeting("n7:61441", 5, 2)),
        ({**SLURM, **EIGHT_GPUS}, Meeting("node003:61441", 5, 2)),  # one task, all of a node's GPUs
        ({**EIGHT_TASKS, **EIGHT_GPUS}, Meeting("node003:61441", 5, 2, devices=(3,))),
        ({**EIGHT_TASKS, "CUDA_VISIBLE_DEVICES": "3"}, Meeting("node003:61441", 5, 2)),
        ({**SLURM, **KUBERNETES}, Meeting("run-workers-0-0.run:8476", 2, 1)),
    ],
)
def test_the_environment_says_where_to_meet(environment, meeting):
    assert find_meeting(environment, tpu=True) == meeting


@pytest.mark.parametrize(
    "environment",
    [
        {"JOB_COMPLETION_INDEX": "4"},  # of an indexed job whose pods are runs of their own
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"},  # sbatch, without srun
        {**SLURM, "SLURM_STEP_NUM_TASKS": "1"},
    ],
)
def test_an_index_alone_makes_no_group(environment):
    assert find_meeting(environment, tpu=False) is None


def test_a_tpu_pod_is_asked_where_nothing_else_is_said():
    assert find_meeting({}, tpu=True) == Meeting()
    assert find_meeting({}, processes=1, tpu=True) is None


def test_flags_beat_the_environment_one_by_one():
    flags = {"coordinator": "here:1", "processes": 3, "process": 0}
    assert find_meeting(SLURM, **flags) == Meeting("here:1", 3, 0)
    assert find_meeting(SLURM, process=4) == Meeting("node003:61441", 5, 4)


@pytest.mark.parametrize(
    ("environment", "flags", "message"),
    [
        ({}, {"coordinator": "a:1", "processes": 2}, "give --process$"),
        ({}, {"process": 0}, "give --coordinator$"),
        ({"JAX_NUM_PROCESSES": "2"}, {}, "give --coordinator or the variable JAX_COORD"),
        ({**KUBERNETES, "JAX_NUM_PROCESSES": "two"}, {}, "JAX_NUM_PROCESSES is 'two', not a whole"),
        (KUBERNETES, {"process": 2}, "process 2 is not one of 2; count --process from 0"),
        (KUBERNETES, {"coordinator": "a:b"}, "--coordinator=a:b names no port; write HOST:PORT"),
    ],
)
def test_an_incomplete_or_wrong_meeting_is_one_line_with_the_fix(environment, flags, message):
    with pytest.raises(ProcessError, match=message) as caught:
        find_meeting(environment, **flags, tpu=False)
    assert "\n" not in str(caught.value)


# ---- waiting ------------------------------------------------------------------------------


def test_alone_there_is_nobody_to_wait_for():
    alone = ProcessGroup()
    alone.barrier("anything")
    assert alone.gather("anything", "mine") == ["mine"]


GLOO = "UNKNOWN: Gloo all-reduce failed: [pair.cc:547] Connection closed by peer [10.0.0.1]:9"


@pytest.fixture
def group(monkeypatch) -> ProcessGroup:
    """Process 0 of 2; the other one is gone."""
    monkeypatch.setattr(multihost, "get_jax_distributed_client", Service)
    return ProcessGroup(0, 2, lost_after=SECONDS)


def test_that_another_process_died_is_one_line_that_names_it(group):
    with pytest.raises(LostError) as caught, group.noticing_loss():
        raise jax.errors.JaxRuntimeError(f"{GLOO}\n  and a stack")
    line = str(caught.value)
    assert line.startswith("process 1 of 2 is gone (UNKNOWN: Gloo all-reduce") and "\n" not in line
    assert caught.value.exit_status == 76


def test_one_process_alone_loses_nobody():
    with pytest.raises(jax.errors.JaxRuntimeError), ProcessGroup().noticing_loss():
        raise jax.errors.JaxRuntimeError(GLOO)


def test_other_errors_of_devices_stay_what_they_are(group):
    with pytest.raises(jax.errors.JaxRuntimeError), group.noticing_loss():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")


LATE = """
import sys, time
from unicom_jax.parallel.processes import Meeting, ProcessError, start
group = start(Meeting(sys.argv[1], 2, int(sys.argv[2])), timeout=30)
assert group.gather("names", f"I am {group.index}") == ["I am 0", "I am 1"]
group = type(group)(group.index, group.count, timeout=1)
if group.index:
    time.sleep(4)
try:
    group.barrier("tea")
except ProcessError as error:
    print(error)
"""
ABSENT = """
import sys
from unicom_jax.parallel.processes import Meeting, start
start(Meeting(sys.argv[1], 2, int(sys.argv[2])), timeout=1)
"""


def run(script: str, process: int, port: int) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", script, f"127.0.0.1:{port}", str(process)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_waiting_for_a_late_or_absent_process_ends_and_names_it():
    port = free_port()
    late = [run(LATE, process, port) for process in range(2)]
    absent = [run(ABSENT, process, free_port()) for process in range(2)]
    printed = [process.communicate(timeout=60)[0] for process in late]
    assert "tea: waited 1 s, but process 1 of 2 did not come; see its log" in printed[0]
    errors = [process.communicate(timeout=60)[1].splitlines()[-1] for process in absent]
    assert [process.returncode for process in absent] == [1, 1]
    assert "unicom: process 0 of 2: waited 1 s, not all processes have come to 127" in errors[0]
    assert "unicom: process 1 of 2: waited 1 s, process 0 does not answer at 127" in errors[1]


WATCHED = """
import os, signal, sys, time
from unicom_jax.parallel.processes import Meeting, start
group = start(Meeting(sys.argv[1], 2, int(sys.argv[2])), timeout=60, lost_after=3)
group.barrier("both are here")
with group.noticing_loss():
    if group.index:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
"""


def test_after_kill_9_the_other_process_names_it_and_ends_with_status_76():
    port = free_port()
    left, killed = (run(WATCHED, process, port) for process in range(2))
    printed = left.communicate(timeout=120)[1]
    killed.communicate()
    assert (left.returncode, killed.returncode) == (76, -9)
    line = "unicom (process 0 of 2): process 1 of 2 gave no sign for 3 s: it is gone or hangs; see"
    assert line in printed
