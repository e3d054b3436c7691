"""The jobs of a sweep: each distinct stage once, then each variant and seed.

    encoder-1f…  ─ codec-9a…  ┬ pretrain-03…  ─ narrow-seed0-…
                              └ pretrain-c4…  ─ wide-seed0-…

A job is one folder, a workdir like any other, and is named by a hash of all that it depends on
(`addresses`). Its description is a file, so that any process that sees the sweep's folder can do
it, and so that it stays what it was when somebody edits the sweep.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unicom_jax.config import KEYS, ConfigError, from_json, to_json, values
from unicom_jax.config.schema import STAGES as SETTINGS
from unicom_jax.config.schema import defaults
from unicom_jax.interop.atomic import write_text
from unicom_jax.runs.stages import PARTS, Occurrence
from unicom_jax.runs.workdir import read_json
from unicom_jax.sweeps.addresses import WATCHED, addresses, ancestors, digest, digest_of
from unicom_jax.sweeps.scored import check_scores, suites_for
from unicom_jax.sweeps.sweep import Sweep, variant_config

STAGE, RUN = "stage", "run"  # kinds of jobs, and their folders with an "s"
SHORT = 8  # digits of a hash in the name of a run


@dataclasses.dataclass(frozen=True)
class Job:
    """One folder to fill.

    Attributes:
      id: its name, unique in the sweep.
      kind: STAGE trains one stage; RUN joins the stages of a variant with a seed, and scores it.
      label: the stage that is trained; "" of a run.
      inputs: label of a stage that it is given -> id of the job that trains it.
      config: what the folder's config.json begins as.
      alike: the same for jobs of equal work, whatever their seed.
      split, baseline: as of `Sweep`; a run with split "" is not scored.
      suites: as of `unicom evaluate --suite`; "": the default ones.
    """

    id: str
    kind: str
    label: str
    inputs: Mapping[str, str]
    config: Mapping[str, Any]
    alike: str
    split: str = ""
    baseline: bool = False
    suites: str = ""

    def folder(self, workdir: Path) -> Path:
        return workdir / f"{self.kind}s" / self.id

    def configuration(self) -> ConfigDict:
        return from_json(self.config)


@dataclasses.dataclass(frozen=True)
class Run:
    """A variant with a seed.

    Attributes:
      job: that joins and scores it.
      changes: what differs from the sweep's configuration, by dotted key.
    """

    variant: str
    seed: int
    job: Job
    changes: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Plan:
    """All jobs by id, those that others need before these, and the runs in the sweep's order."""

    jobs: Mapping[str, Job]
    runs: tuple[Run, ...]

    def needed(self, run: Run) -> list[Job]:
        """The stages of a run, in the order of training."""
        return [self.jobs[id] for id in run.job.inputs.values()]

    def shared(self) -> Counter:
        """How many runs need each stage, by id."""
        return Counter(job.id for run in self.runs for job in self.needed(run))

    def only(self, runs: Iterable[Run]) -> Plan:
        """The part of the plan that some runs need."""
        runs = tuple(runs)
        wanted = {job.id for run in runs for job in (*self.needed(run), run.job)}
        return Plan({id: job for id, job in self.jobs.items() if id in wanted}, runs)

    def shard(self, index: int, count: int) -> Plan:
        """Each `count`-th run, from `index` on."""
        return self.only(self.runs[index::count])


def make_plan(sweep: Sweep) -> Plan:
    """The plan of a sweep.

    Raises:
      ConfigError: a variant that cannot be, two variants or two seeds that are the same, or a score
        that no variant can have.
    """
    jobs: dict[str, Job] = {}
    runs, names, configs = [], {}, {}
    for name in sweep.variants:
        trained: dict[tuple[str, ...], int] = {}
        for seed in sweep.seeds:
            config = configs[name] = variant_config(sweep, name, seed)
            stages = stage_jobs(config)
            same = trained.setdefault(tuple(job.id for job in stages.values()), seed)
            if same != seed:
                raise ConfigError(
                    f"the seeds {same} and {seed} of the variant {name} train the same weights, as "
                    "every stage has a seed of its own; set STAGE.seed=-1 for the stages that are "
                    "compared, or give one seed"
                )
            jobs |= {job.id: job for job in stages.values() if job.id not in jobs}
            run = _run_job(sweep, name, config, stages)
            twin = names.setdefault((seed, run.id.rpartition("-")[2]), name)
            if twin != name:
                raise ConfigError(
                    f"the variants {twin} and {name} are the same"
                    f"{_without_effect(configs[twin], config)}; change or remove one of them"
                )
            runs.append(Run(name, seed, run, _changes(sweep.config, config)))
    check_scores(sweep.scores, configs.values())
    jobs |= {run.job.id: run.job for run in runs}
    return Plan(jobs, tuple(runs))


def _without_effect(one: ConfigDict, other: ConfigDict) -> str:
    """The keys in which two configurations of the same runs differ, in words."""
    keys = ", ".join(_changes(one, other))
    return f", as no stage that they train depends on {keys}" if keys else ""


def _changes(base: ConfigDict, config: ConfigDict) -> dict[str, Any]:
    """What differs from the base, the seed aside, as JSON has it."""
    before, now = (dict(values(json.loads(to_json(one)))) for one in (base, config))
    return {key: now[key] for key in KEYS if key != "seed" and now[key] != before[key]}


def stage_jobs(config: ConfigDict) -> dict[Occurrence, Job]:
    """The jobs of the stages of a configuration."""
    found: dict[Occurrence, Job] = {}
    alike = addresses(config, seed=False)
    for stage, address in addresses(config).items():
        before = ancestors(config, stage)
        found[stage] = Job(
            id=f"{stage.label}-{address}",
            kind=STAGE,
            label=stage.label,
            inputs={one.label: found[one].id for one in before},
            config=json.loads(to_json(_alone(config, [*before, stage]))),
            alike=f"{stage.label}-{alike[stage]}",
        )
    return found


def _alone(config: ConfigDict, stages: list[Occurrence]) -> ConfigDict:
    """The configuration of a workdir that has these stages alone. Settings of other stages would
    refuse it, such as an `init_from` of a stage that it does not train."""
    alone = config.copy_and_resolve_references()
    names = [stage.name for stage in stages]
    alone.stages = tuple(names)
    for name, group in SETTINGS.items():
        if name not in names and name not in PARTS:
            alone[name].update(defaults(group.keys))
    return alone


def _run_job(sweep: Sweep, name: str, config: ConfigDict, stages: Mapping[Occurrence, Job]) -> Job:
    split = sweep.split if sweep.evaluates else ""
    about = {
        "stages": [job.id for job in stages.values()],
        "scored": digest_of(config, WATCHED) if split else "",
        "split": split,
        "baseline": sweep.baseline,
    }
    suites = suites_for(sweep.scores)
    if suites:  # sweeps without them keep their addresses
        about["suites"] = suites
    alike = {**about, "stages": [job.alike for job in stages.values()]}
    return Job(
        id=f"{name}-seed{config.seed}-{digest(about)[:SHORT]}",
        kind=RUN,
        label="",
        inputs={stage.label: job.id for stage, job in stages.items()},
        config=json.loads(to_json(config)),
        alike=digest(alike),
        split=split,
        baseline=sweep.baseline,
        suites=suites,
    )


# ---- files -------------------------------------------------------------------------------------


def write_jobs(plan: Plan, workdir: Path) -> None:
    """Writes `WORKDIR/jobs/ID.json` of every job that has none."""
    folder = workdir / "jobs"
    folder.mkdir(parents=True, exist_ok=True)
    there = {path.name for path in folder.iterdir()}
    for job in plan.jobs.values():
        name = f"{job.id}.json"
        if name not in there:
            write_text(folder / name, json.dumps(dataclasses.asdict(job), indent=1))


def read_job(workdir: Path, id: str) -> Job:
    """Raises ConfigError where the file is damaged."""
    return Job(**read_json(workdir / "jobs" / f"{id}.json", ConfigError))
