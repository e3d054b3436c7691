"""`unicom sweep` and `unicom compare`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rich.box
import rich.table
from rich.console import Console

from unicom_jax.config import ConfigError
from unicom_jax.core.paths import as_path, is_remote
from unicom_jax.evaluation.report import duration
from unicom_jax.runs.lock import is_locked
from unicom_jax.sweeps.compare import (
    HEADINGS,
    Comparison,
    Measured,
    compare_sweep,
    latex,
    markdown,
    measured_of,
    row_of,
)
from unicom_jax.sweeps.engines import ENGINES, PACKAGES
from unicom_jax.sweeps.hand import compare_groups, differing, group_runs, steps_apart
from unicom_jax.sweeps.here import results_here
from unicom_jax.sweeps.measure import measure_stages, read_measured
from unicom_jax.sweeps.outcomes import DONE, FAILED, claim_of, read_outcomes
from unicom_jax.sweeps.outdated import all_outdated
from unicom_jax.sweeps.plan import Job, Plan, Run, make_plan, read_job
from unicom_jax.sweeps.predict import (
    COUNTED,
    FINISHED,
    MEASURED,
    PLANNED,
    UNKNOWN,
    Cost,
    finished_seconds,
    predict,
    unit_of_time,
)
from unicom_jax.sweeps.report import write_report
from unicom_jax.sweeps.results import rows_of, write_table
from unicom_jax.sweeps.runner import Ended, Runner, finished, reasons, spent
from unicom_jax.sweeps.spread import SPREAD_HEADINGS, spread_rows, spreads
from unicom_jax.sweeps.sweep import Sweep, load_sweep
from unicom_jax.training.stopping import stop_signals


class SweepError(Exception):
    """Some runs of a sweep have no result. One line that counts them."""


def run_sweep(args: argparse.Namespace, console: Console) -> None:
    """`unicom sweep run`.

    Raises:
      ConfigError: the file describes no sweep.
      SweepError: some runs failed, or the CPU time did not suffice.
      Stopped: somebody asked to stop.
    """
    sweep, workdir = load_sweep(args.file), workdir_of(args)
    whole = make_plan(sweep)
    plan = whole.shard(*args.shard) if args.shard else whole
    if args.measure:
        measure_stages(plan, workdir, console, finished_seconds(*_known(workdir, plan)))
    if args.measure or args.dry_run:
        print_plan(sweep, plan, workdir, console)
    if args.dry_run:
        return
    if (package := PACKAGES.get(args.engine)) and importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"--engine={args.engine} needs a package that is missing; "
            f"pip install 'unicom_jax[{args.engine}]'"
        )
    workdir.mkdir(parents=True, exist_ok=True)
    console.print(f"{workdir}: {len(plan.runs)} runs, {len(plan.jobs)} jobs, {args.jobs} at once")
    with stop_signals() as stop, ENGINES[args.engine]() as submit:
        ended = Runner(
            plan,
            workdir,
            submit,
            args.jobs,
            console,
            minutes=sweep.minutes,
            others=whole.jobs.keys() - plan.jobs.keys(),
            asked_to_stop=stop,
        ).run()
    with results_here(whole, workdir) as results:
        _finish(sweep, whole, plan, workdir, results, console, ended)


def _finish(
    sweep: Sweep,
    whole: Plan,
    own: Plan,
    workdir: Path,
    results: Path,
    console: Console,
    ended: Ended,
) -> None:
    """The table and the report of the whole sweep, as far as it is done."""
    write_table(rows_of(whole, results), workdir)
    print_comparisons(compare_sweep(sweep, whole, results), sweep, whole, results, console)
    console.print(f"report: {write_report(sweep, whole, workdir, results)}")
    outcomes, done = read_outcomes(results, whole.jobs), finished(own, results)
    without = [run for run in own.runs if run.job.id not in done]
    what = f"{len(without)} of {len(own.runs)} runs have no result"
    if ended.unstarted:
        raise SweepError(
            f"{what}: {spent(outcomes) / 60:.1f} CPU minutes were used, more than "
            f"minutes={sweep.minutes:g}; raise it to continue"
        )
    if without:
        raise SweepError(
            f"{what}; unicom sweep status shows why, and the same command tries them again"
        )


def workdir_of(args: argparse.Namespace) -> Path:
    """The folder of a sweep."""
    return as_path(args.workdir or f"runs/sweeps/{Path(args.file).stem}")


# ---- plan and status -------------------------------------------------------------------------


WIDE = 160  # columns of a table where it goes to no terminal


def _show(table: rich.table.Table, console: Console) -> None:
    """Prints a table whose cells are not cut."""
    if not console.is_terminal:
        console.width = WIDE
    console.print(table)


def _table(*headings: str, numbers: Sequence[str] = ()) -> rich.table.Table:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        justify = "right" if heading in numbers else "left"
        table.add_column(heading, justify=justify, overflow="fold")
    return table


def print_plan(sweep: Sweep, plan: Plan, workdir: Path, console: Console) -> None:
    """What `run` would do: variants, what they share, predicted time and disk space."""
    outcomes, jobs = _known(workdir, plan)
    costs = predict(plan, outcomes, jobs, read_measured(workdir, plan))
    shared = plan.shared()
    ended = {id: outcomes.get(id, {}) for id in plan.jobs}
    old = all_outdated(plan, workdir, ended)
    done = {id for id, one in ended.items() if one.get("status") == DONE and id not in old}
    of_time = "CPU time" if unit_of_time() == "cpu_seconds" else "device time"
    numbers = ("seeds", f"own {of_time}", f"shared {of_time}")
    table = _table("variant", "seeds", "trains alone", "shares", *numbers[1:], numbers=numbers)
    for variant in dict.fromkeys(run.variant for run in plan.runs):
        runs = [run for run in plan.runs if run.variant == variant]
        needed = [job for run in runs for job in plan.needed(run)]
        others = plan.only(run for run in plan.runs if run.variant != variant).jobs
        own = [job for job in needed if job.id not in others]
        common = [job for job in needed if job.id in others]
        table.add_row(
            variant,
            str(len(runs)),
            _labels(own),
            _labels(common),
            _time([costs[job.id] for job in (*own, *(run.job for run in runs))]),
            _time([costs[job.id] for job in common]),
        )
    console.print(f"claim: {sweep.claim}")
    _show(table, console)
    _print_reasons(old, console)
    left = [job for id, job in plan.jobs.items() if id not in done]
    most = max(shared.values(), default=1)
    console.print(
        f"{len(plan.jobs)} jobs, {len(plan.jobs) - len(left)} done; a stage is shared by up to "
        f"{most} runs"
    )
    total = [costs[job.id] for job in left]
    console.print(
        f"left: {_time(total)} of {of_time}{_sources(total)}; used {duration(spent(ended))} of "
        f"{sweep.minutes:g} min of CPU time",
        soft_wrap=True,
    )
    if any(cost.source == PLANNED for cost in total):
        console.print(
            "planned time is the least that the steps can take on these accelerators (roofline); "
            "start and compilation are not in it",
            soft_wrap=True,
        )
    _print_space(left, costs, workdir, console)


def _print_reasons(found: Mapping[str, str], console: Console) -> None:
    """Why jobs do not count, by id."""
    for id, reason in found.items():
        console.print(f"! {id}: {reason}")


def _print_space(
    left: Sequence[Job], costs: Mapping[str, Cost], workdir: Path, console: Console
) -> None:
    """The space that the checkpoints of the jobs that are left will take."""
    nbytes = sum(costs[job.id].nbytes for job in left)
    if is_remote(workdir):
        copies = sum(costs[id].nbytes for job in left for id in job.inputs.values())
        console.print(
            f"store: {(nbytes + copies) / 2**20:,.0f} MiB of checkpoints, "
            f"{copies / 2**20:,.0f} MiB of them copies of shared stages"
        )
        return
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    console.print(f"disk: {nbytes / 2**20:,.0f} MiB of checkpoints, {free / 2**20:,.0f} MiB free")


def _known(workdir: Path, plan: Plan) -> tuple[dict[str, Mapping[str, Any]], dict[str, Job]]:
    """Outcomes and descriptions of all jobs in a folder, those of other plans too, except for jobs
    of other plans whose description is lost."""
    outcomes, jobs = read_outcomes(workdir), dict(plan.jobs)
    for id in outcomes.keys() - jobs.keys():
        with contextlib.suppress(FileNotFoundError):
            jobs[id] = read_job(workdir, id)
    return {id: outcome for id, outcome in outcomes.items() if id in jobs}, jobs


def _labels(jobs: Sequence[Job]) -> str:
    return ", ".join(dict.fromkeys(job.label for job in jobs)) or "–"


def _time(costs: Sequence[Cost]) -> str:
    known = [cost.seconds for cost in costs if cost.seconds is not None]
    missing = len(costs) - len(known)
    text = duration(sum(known)) if known else "–"
    return f"{text} + {missing} unknown" if missing and known else text


def _sources(costs: Sequence[Cost]) -> str:
    """How many jobs' times come from where."""
    counts = Counter(cost.source for cost in costs)
    of_jobs = "jobs" if len(costs) > 1 else "job"
    told = [
        f"{counts[source]} {source}"
        for source in (FINISHED, MEASURED, COUNTED, PLANNED, UNKNOWN)
        if counts[source]
    ]
    return f" ({of_jobs}: {', '.join(told)})" if told else ""


def print_status(args: argparse.Namespace, console: Console) -> None:
    """`unicom sweep status`."""
    sweep, workdir = load_sweep(args.file), workdir_of(args)
    plan = make_plan(sweep)
    headings = ("job", "state", "variants", "seed", "CPU time", "reason")
    table, states = _table(*headings, numbers=("seed", "CPU time")), []
    whose = _whose(plan)
    outcomes = read_outcomes(workdir, plan.jobs)
    old = all_outdated(plan, workdir, outcomes)
    for id in plan.jobs:
        outcome = (
            {**outcomes[id], "status": FAILED, "reason": old[id]} if id in old else outcomes[id]
        )
        states.append(_state(workdir, id, outcome))
        seconds = outcome.get("cpu_seconds")
        table.add_row(
            id,
            states[-1],
            *whose[id],
            "" if seconds is None else duration(seconds),
            outcome.get("reason", "") if states[-1] == FAILED else "",
        )
    _show(table, console)
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    console.print(f"{counts}; {duration(spent(outcomes))} of CPU time used")


def _whose(plan: Plan) -> dict[str, tuple[str, str]]:
    """The variants and the seeds that need each job, in words, by id."""
    needed: dict[str, list[Run]] = {}
    for run in plan.runs:
        for id in (*run.job.inputs.values(), run.job.id):
            needed.setdefault(id, []).append(run)
    count, found = len({run.variant for run in plan.runs}), {}
    for id, runs in needed.items():
        names = list(dict.fromkeys(run.variant for run in runs))
        seeds = ", ".join(map(str, sorted({run.seed for run in runs})))
        found[id] = ("all" if len(names) == count > 1 else ", ".join(names), seeds)
    return found


def _state(workdir: Path, id: str, outcome: Mapping[str, Any]) -> str:
    status = outcome.get("status", "waiting")
    return "running" if status != DONE and is_locked(claim_of(workdir, id)) else status


# ---- results ---------------------------------------------------------------------------------


def print_table(args: argparse.Namespace, console: Console) -> None:
    """`unicom sweep table`."""
    sweep, workdir = load_sweep(args.file), workdir_of(args)
    plan = make_plan(sweep)
    if not workdir.is_dir():
        raise ConfigError(f"{workdir} holds no sweep; start it with unicom sweep run {args.file}")
    with results_here(plan, workdir) as results:
        files = write_table(rows_of(plan, results), workdir)
        found = compare_sweep(sweep, plan, results)
        print_comparisons(found, sweep, plan, results, console, args.form)
    if args.form is None:
        console.print(f"table: {files[0]}, {files[1]}")


def print_comparisons(
    found: Sequence[Comparison],
    sweep: Sweep,
    plan: Plan,
    workdir: Path,
    console: Console,
    form: str | None = None,
) -> None:
    """The comparisons of a sweep; the runs without a result below them."""
    measured = measured_of(plan, workdir, sweep.scores)
    if form is None:
        console.print(f"claim: {sweep.claim}")
    _print_rows(found, measured, console, form)
    if form is None:
        _print_reasons(reasons(plan, workdir), console)
        if (done := len(finished(plan, workdir))) < len(plan.runs):
            console.print(f"{done} of {len(plan.runs)} runs have a result")


def _print_rows(
    found: Sequence[Comparison],
    measured: Mapping[str, Measured],
    console: Console,
    form: str | None,
) -> None:
    rows = [row_of(one, measured[one.contrast.score]) for one in found]
    _print_cells(HEADINGS, rows, console, form, numbers=("difference", "p (Holm)", "n"))


def _print_cells(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    console: Console,
    form: str | None,
    numbers: Sequence[str],
) -> None:
    """Prints a table in one of its three forms; `numbers` are the columns on the right."""
    if form is not None:
        console.print({"markdown": markdown, "latex": latex}[form](headings, rows))
        return
    table = _table(*headings, numbers=numbers)
    for row in rows:
        table.add_row(*row)
    _show(table, console)


def run_report(args: argparse.Namespace, console: Console) -> None:
    """`unicom sweep report`."""
    sweep, workdir = load_sweep(args.file), workdir_of(args)
    if not workdir.is_dir():
        raise ConfigError(f"{workdir} holds no sweep; start it with unicom sweep run {args.file}")
    plan = make_plan(sweep)
    with results_here(plan, workdir) as results:
        console.print(f"report: {write_report(sweep, plan, workdir, results)}")


def run_compare(args: argparse.Namespace, console: Console) -> None:
    """`unicom compare`."""
    groups = group_runs([as_path(run) for run in args.runs])
    if args.form is None:
        for group in groups:
            seeds = ", ".join(map(str, group.runs))
            console.print(f"{group.name}: {len(group.runs)} run(s), seed {seeds}")
            if steps := steps_apart(group):
                console.print(f"! {group.name} was scored after other steps: {steps}")
    if len(groups) == 1:
        rows = spread_rows(spreads(groups[0]))
        _print_cells(SPREAD_HEADINGS, rows, console, args.form, numbers=SPREAD_HEADINGS[1:])
        return
    found, measured = compare_groups(groups)
    if args.form is None:
        for key, given in differing(groups).items():
            console.print(f"  {key}: {' | '.join(map(str, given))}")
    _print_rows(found, measured, console, args.form)
