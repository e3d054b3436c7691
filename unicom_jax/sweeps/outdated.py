"""Jobs whose folders hold an earlier training of a stage than the sweep has now.

A folder is given copies of the stages before it, and it keeps them when one of these stages is
trained anew: after a fault in the code, say, or with other data. Its scores are then those of
weights that the sweep no longer has. Each training writes a `stage.json` of its own, so a copy that
differs is of another one.
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


def facts_of(workdir: Path, job: Job, label: str) -> tuple[Path, Path]:
    """The `stage.json` of a stage in the folder of a job that was given it, and in the folder in
    which it was trained."""
    trained = workdir / "stages" / job.inputs[label]
    return job.folder(workdir) / label / FACTS, trained / label / FACTS


def trained_anew(workdir: Path, job: Job, label: str) -> bool:
    """Whether a stage was trained anew since a job was given it; False if one of the folders does
    not say which training it has."""
    given, trained = facts_of(workdir, job, label)
    return given.is_file() and trained.is_file() and given.read_bytes() != trained.read_bytes()


def later_stages(job: Job, outcomes: Outcomes) -> list[str]:
    """The labels of the stages that ended after a job that was given them. No others can have been
    trained anew, so no files of others have to be read."""
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
    anew = (remedy(job, label) for label in later if trained_anew(workdir, job, label))
    return next(anew, "")


def remedy(job: Job, label: str) -> str:
    """What to do about a job's folder that holds an earlier training of a stage. Names paths in the
    sweep's folder, of which commands may read a copy."""
    return (
        f"{job.folder(Path())} holds an earlier training of {job.inputs[label]}; remove it and "
        f"{path_of(Path(), job.id)} from the sweep's folder, and run the sweep again"
    )


def all_outdated(plan: Plan, workdir: Path, outcomes: Outcomes) -> dict[str, str]:
    """`outdated` for all jobs of a plan that are done and do not count: id -> reason."""
    done = (job for job in plan.jobs.values() if outcomes[job.id].get("status") == DONE)
    found = ((job.id, outdated(workdir, job, outcomes)) for job in done)
    return {id: why for id, why in found if why}
