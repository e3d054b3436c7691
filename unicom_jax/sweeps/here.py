"""The results of a sweep on this machine: of one in an object store, a copy for the time of a
command, since tables and comparisons read many small files."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from unicom_jax.core.paths import COPIES_AT_ONCE, copy_file, is_remote
from unicom_jax.evaluation.records import OUTCOMES_FILE
from unicom_jax.evaluation.run import RECORDS_FOLDER, SCORES_FILE
from unicom_jax.sweeps.outcomes import DONE, path_of, read_outcomes
from unicom_jax.sweeps.outdated import facts_of, later_stages
from unicom_jax.sweeps.plan import RUN, Plan


@contextlib.contextmanager
def results_here(plan: Plan, workdir: Path) -> Iterator[Path]:
    """A folder from which `rows_of`, `compare_sweep` and the report read: the workdir itself, or a
    copy of its outcomes and of what its finished runs have measured."""
    if not is_remote(workdir):
        yield workdir
        return
    outcomes = read_outcomes(workdir, plan.jobs)
    wanted = [path_of(Path(), id) for id, outcome in outcomes.items() if outcome]
    for job in plan.jobs.values():
        if outcomes[job.id].get("status") != DONE:
            continue
        for label in later_stages(job, outcomes):
            wanted += facts_of(Path(), job, label)  # for `outdated`
        if job.kind == RUN:
            names = [f"{label}/metrics.jsonl" for label in job.inputs]
            if job.split:
                names += [SCORES_FILE, f"{RECORDS_FOLDER}/{OUTCOMES_FILE}"]
            wanted += [job.folder(Path()) / name for name in names]
    with tempfile.TemporaryDirectory(prefix="unicom-sweep-") as here:

        def fetch(path: Path) -> None:
            with contextlib.suppress(FileNotFoundError):  # a stage that was never evaluated
                copy_file(workdir / path, Path(here, path))

        with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
            list(pool.map(fetch, dict.fromkeys(wanted)))  # several runs may share a stage
        try:
            yield Path(here)
        except Exception as error:  # its message names the copy, which nobody can look at
            error.args = tuple(
                one.replace(here, str(workdir)) if isinstance(one, str) else one
                for one in error.args
            )
            if isinstance(error, OSError) and error.filename is not None:
                error.filename = os.fspath(error.filename).replace(here, str(workdir))
            raise
