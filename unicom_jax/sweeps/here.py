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
from unicom_jax.runs.workdir import FACTS
from unicom_jax.sweeps.outcomes import DONE, FOLDER, read_outcomes
from unicom_jax.sweeps.outdated import later_stages, stage_folder
from unicom_jax.sweeps.plan import Plan


@contextlib.contextmanager
def results_here(plan: Plan, workdir: Path) -> Iterator[Path]:
    """A folder from which `rows_of`, `compare_sweep` and the report read: the workdir itself, or a
    copy of its outcomes and of what its finished runs have measured."""
    if not is_remote(workdir):
        yield workdir
        return
    outcomes = read_outcomes(workdir, plan.jobs)
    wanted = [f"{FOLDER}/{id}.json" for id, outcome in outcomes.items() if outcome]
    for run in plan.runs:
        if outcomes[run.job.id].get("status") == DONE:
            names = [f"{label}/metrics.jsonl" for label in run.job.inputs]
            if run.job.split:
                names += [SCORES_FILE, f"{RECORDS_FOLDER}/{OUTCOMES_FILE}"]
            folder = run.job.folder(workdir).relative_to(workdir)
            for label in later_stages(run.job, outcomes):  # for `outdated`
                stage = stage_folder(workdir, run.job, label).relative_to(workdir)
                names.append(f"{label}/{FACTS}")
                wanted.append(f"{stage}/{FACTS}")
            wanted += [f"{folder}/{name}" for name in names]
    with tempfile.TemporaryDirectory(prefix="unicom-sweep-") as here:

        def fetch(name: str) -> None:
            with contextlib.suppress(FileNotFoundError):  # a stage that was never evaluated
                copy_file(workdir / name, Path(here, name))

        with ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
            list(pool.map(fetch, wanted))
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
