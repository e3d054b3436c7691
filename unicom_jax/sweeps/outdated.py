"""Jobs whose folders hold an earlier training of a stage than the sweep has now.

A folder is given copies of the stages before it and stays complete when they are removed, also when
one of them is trained anew: after a fault in the code, say, or with other data. Its scores would
then be those of weights that the sweep no longer has. Each training writes a `stage.json` of its
own, so a copy that differs is of another one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicom_jax.runs.workdir import FACTS
from unicom_jax.sweeps.outcomes import DONE, path_of
from unicom_jax.sweeps.plan import Job, Plan

Outcomes = Mapping[str, Mapping[str, Any]]  # by id


def stage_folder(workdir: Path, job: Job, label: str) -> Path:
    """The folder of a stage that a job was given, where it was trained."""
    return workdir / "stages" / job.inputs[label] / label


def trained_anew(workdir: Path, job: Job, label: str) -> bool:
    """Whether the stage that a job's folder was given differs from that of its own folder; False
    where one of them does not say which training it is of."""
    given = job.folder(workdir) / label / FACTS
    stage = stage_folder(workdir, job, label) / FACTS
    return given.is_file() and stage.is_file() and given.read_bytes() != stage.read_bytes()


def later_stages(job: Job, outcomes: Outcomes) -> list[str]:
    """The labels of stages that were done after a job that was given them: of these alone, files
    have to be read."""
    ended = outcomes[job.id].get("at", math.inf)
    found = {label: outcomes.get(id, {}) for label, id in job.inputs.items()}
    return [
        label
        for label, one in found.items()
        if one.get("status") == DONE and one.get("at", 0.0) > ended
    ]


def outdated(workdir: Path, job: Job, outcomes: Outcomes) -> str:
    """Why the result of a job that is done does not count; "" if it does.

    Args:
      outcomes: of the job and of the stages before it.
    """
    later = later_stages(job, outcomes)
    anew = (label for label in later if trained_anew(workdir, job, label))
    label = next(anew, "")
    return remedy(workdir, job, label) if label else ""


def remedy(workdir: Path, job: Job, label: str) -> str:
    """What to do about a folder that holds an earlier training of a stage."""
    return (
        f"{job.folder(workdir)} holds an earlier training of {job.inputs[label]}; remove it and "
        f"{path_of(workdir, job.id)}, and run the sweep again"
    )


def all_outdated(plan: Plan, workdir: Path, outcomes: Outcomes) -> dict[str, str]:
    """`outdated` of all jobs of a plan that are done: id -> reason."""
    done = (job for job in plan.jobs.values() if outcomes[job.id].get("status") == DONE)
    found = ((job.id, outdated(workdir, job, outcomes)) for job in done)
    return {id: why for id, why in found if why}
