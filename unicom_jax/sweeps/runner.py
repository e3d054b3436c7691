"""The loop that does a plan: whatever is ready goes to the engine, until all is done or failed.

Several runners may do one plan at once: a job that another one is at comes back as busy and waits
while this one does what is free. A job that fails takes those with it that need it, and no other.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from unicom_jax.core.paths import is_remote
from unicom_jax.runs.lock import is_locked
from unicom_jax.sweeps.engines import LOOK, Handle, Submit
from unicom_jax.sweeps.outcomes import (
    BUSY,
    DONE,
    FAILED,
    STOPPED,
    claim_of,
    read_outcome,
    read_outcomes,
)
from unicom_jax.sweeps.outdated import all_outdated, outdated
from unicom_jax.sweeps.plan import Job, Plan, write_jobs
from unicom_jax.training.stopping import Stopped

AGAIN = 3.0  # seconds after which a job is tried again that another runner was at
# The same in an object store, where each look is a request.
STORE_LOOK, STORE_AGAIN = 2.0, 15.0


@dataclasses.dataclass(frozen=True)
class Ended:
    """What became of the jobs of a plan.

    Attributes:
      failed: id -> reason.
      unstarted: ids of jobs for which the CPU time did not suffice.
    """

    failed: Mapping[str, str]
    unstarted: tuple[str, ...]


@dataclasses.dataclass
class Runner:
    """Does all jobs of a plan that are not done. Those that failed before are tried again.

    Attributes:
      slots: jobs at once.
      minutes: CPU time of all jobs after which no further one is started.
      others: ids of jobs outside of the plan whose time counts too: those of the other tasks of an
        array.
    """

    plan: Plan
    workdir: Path
    submit: Submit
    slots: int
    console: Console
    minutes: float
    others: Collection[str] = ()
    asked_to_stop: Callable[[], bool] = lambda: False

    def __post_init__(self) -> None:
        self.began = time.time()
        remote = is_remote(self.workdir)
        self.look, self.again = (STORE_LOOK, STORE_AGAIN) if remote else (LOOK, AGAIN)
        self.running: dict[str, Handle] = {}
        self.waits: dict[str, float] = {}  # until when a busy job is left alone
        self.elsewhere: set[str] = set()  # busy jobs of which the user has been told
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}
        shared = self.plan.shared()
        # What most runs wait for comes first; jobs come after those they need.
        self.order = sorted(self.plan.jobs.values(), key=lambda job: -shared[job.id])

    def run(self) -> Ended:
        """Ends when all jobs are done, failed or over the CPU time.

        Raises:
          Stopped: somebody asked to stop; jobs under way have saved.
        """
        write_jobs(self.plan, self.workdir)
        stopping = False
        while True:
            self._collect()
            outcomes = read_outcomes(self.workdir, self.plan.jobs)
            self._look_at(outcomes)
            if self.asked_to_stop() and not stopping:
                stopping = True
                for handle in self.running.values():
                    handle.stop()
            left = [job for job in self.order if not self._ended(job.id)]
            if stopping and not self.running:
                raise Stopped("stopped; run the same command to resume the sweep")
            if not left and not self.running:
                return Ended(self.failed, ())
            over = len(self.running) < self.slots and self._is_over(outcomes)
            if over and not self.running:
                return Ended(self.failed, tuple(job.id for job in left))
            if not (stopping or over):
                self._start(left)
            time.sleep(self.look)

    def _is_over(self, outcomes: Mapping[str, Mapping[str, Any]]) -> bool:
        """Whether the CPU time of the sweep is used up."""
        seconds = spent(outcomes)
        if self.others:
            seconds += spent(read_outcomes(self.workdir, self.others))
        return seconds > 60 * self.minutes

    def _ended(self, id: str) -> bool:
        return id in self.done or id in self.failed

    def _look_at(self, outcomes: Mapping[str, Mapping[str, Any]]) -> None:
        """Notes what ended, here or in another runner, and what can no more be done."""
        for id, job in self.plan.jobs.items():
            if self._ended(id) or id in self.running:
                continue
            outcome = outcomes[id]
            if outcome.get("status") == DONE:
                if not self.done.issuperset(job.inputs.values()):
                    continue  # a stage before it is done again
                if why := outdated(self.workdir, job, outcomes):
                    self._fail(job, why)
                else:
                    self.done.add(id)
            elif outcome.get("status") == FAILED and outcome["at"] >= self.began:
                self._fail(job, outcome["reason"])
        for job in self.plan.jobs.values():
            broken = [id for id in job.inputs.values() if id in self.failed]
            if broken and not self._ended(job.id):
                first = broken[0]
                reason = self.failed[first]
                known = reason if reason.startswith("stage ") else f"stage {first}: {reason}"
                self.failed[job.id] = known

    def _fail(self, job: Job, reason: str) -> None:
        self.failed[job.id] = reason
        self.console.print(f"! {job.id} failed: {reason}", soft_wrap=True, markup=False)

    def _collect(self) -> None:
        for id, handle in list(self.running.items()):
            status = handle.poll()
            if status is None:
                continue
            del self.running[id]
            if status == BUSY:
                if id not in self.elsewhere:
                    self.elsewhere.add(id)
                    self.console.print(
                        f"{id}: another process is at it; waiting for its end", soft_wrap=True
                    )
                self.waits[id] = time.monotonic() + self.again
            elif status == DONE:
                self.done.add(id)
                outcome = read_outcome(self.workdir, id)
                self.console.print(
                    f"{id}: done in {outcome.get('cpu_seconds', 0):.0f} s of CPU time "
                    f"({len(self.done)} of {len(self.plan.jobs)})",
                    soft_wrap=True,
                )
            elif status == FAILED:
                outcome = read_outcome(self.workdir, id)
                if outcome.get("status") == DONE:  # another runner has done it since
                    self.done.add(id)
                else:
                    self._fail(self.plan.jobs[id], outcome["reason"])
            elif status == STOPPED and not self.asked_to_stop():
                self.waits[id] = time.monotonic() + self.again  # another one stopped it: resume

    def _start(self, left: list[Job]) -> None:
        now = time.monotonic()
        for job in left:
            if len(self.running) >= self.slots:
                return
            ready = all(id in self.done for id in job.inputs.values())
            if not ready or job.id in self.running or self.waits.get(job.id, 0.0) > now:
                continue
            if is_locked(claim_of(self.workdir, job.id)):  # saves a process that would find it so
                self.waits[job.id] = now + self.again
            else:
                self.running[job.id] = self.submit(self.workdir, job.id)


def spent(outcomes: Mapping[str, Mapping[str, Any]]) -> float:
    """CPU seconds of jobs, as far as they ended."""
    return sum(outcome.get("cpu_seconds", 0.0) for outcome in outcomes.values())


def finished(plan: Plan, workdir: Path) -> frozenset[str]:
    """The ids of the runs that are done with all their stages. A stage whose outcome was lost since
    is trained again before its runs count; if it was trained anew, they do not."""
    outcomes = read_outcomes(workdir, plan.jobs)
    done = {id for id, outcome in outcomes.items() if outcome.get("status") == DONE}
    done -= all_outdated(plan, workdir, outcomes).keys()
    return frozenset(
        run.job.id for run in plan.runs if done.issuperset((*run.job.inputs.values(), run.job.id))
    )


def reasons(plan: Plan, workdir: Path) -> dict[str, str]:
    """Why runs have no result, by the id of their job: what failed, in them or before them."""
    outcomes = read_outcomes(workdir, plan.jobs)
    failed = {id: one["reason"] for id, one in outcomes.items() if one.get("status") == FAILED}
    failed |= all_outdated(plan, workdir, outcomes)
    found: dict[str, str] = {}
    for run in plan.runs:
        for job in (*plan.needed(run), run.job):
            if job.id in failed:
                before = "" if job.id == run.job.id else f"stage {job.id}: "
                found.setdefault(run.job.id, before + failed[job.id])
    return found
