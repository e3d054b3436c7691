"""`unicom compare`: runs that were made by hand, grouped by configuration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unicom_jax.config import KEYS, ConfigError, values
from unicom_jax.core.paths import as_path
from unicom_jax.evaluation.run import SCORES_FILE
from unicom_jax.evaluation.scores import read_about, read_scores, score_names
from unicom_jax.runs.configuration import read_config
from unicom_jax.runs.items import CheckpointError
from unicom_jax.runs.stages import PARTS, STAGES, names_a_run, occurrences
from unicom_jax.runs.workdir import CONFIG
from unicom_jax.sweeps.addresses import digest, is_free
from unicom_jax.sweeps.compare import Comparison, Measured, compare
from unicom_jax.sweeps.items import outcomes_of
from unicom_jax.sweeps.sweep import Contrast

# What has to be equal for scores to be comparable; how a model samples may be what is compared.
PROTOCOL = ("split", "data", "judge", "answer_rule", "trained_on", "best_of")
USUAL = {"best_of": 1}  # what scores without the entry were made with


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one configuration, by seed.

    Attributes:
      name: of the folder of the first one.
      settings: keys on which their results depend, the seed aside.
    """

    name: str
    settings: Mapping[str, Any]
    runs: Mapping[int, Path]


def group_runs(workdirs: Sequence[Path]) -> list[Group]:
    """The runs whose configurations differ in nothing but the seed, in the order given (see
    `settings_of`).

    Raises:
      ConfigError: a folder that is no run or has no scores, two runs of one configuration and seed,
        or runs that were scored in other ways.
    """
    groups: dict[str, Group] = {}
    about: dict[Path, dict[str, Any]] = {}
    for workdir in workdirs:
        if not (workdir / CONFIG).is_file():
            raise ConfigError(f"{workdir} holds no run; give the --workdir of unicom train")
        if not (workdir / SCORES_FILE).is_file():
            raise ConfigError(
                f"{workdir} was not scored; run unicom evaluate --workdir={workdir} first"
            )
        about[workdir] = read_about(workdir / SCORES_FILE)
        settings, seed = settings_of(workdir)
        key = json.dumps(settings, sort_keys=True, default=list)
        group = groups.setdefault(key, Group(workdir.resolve().name, settings, {}))
        if seed in group.runs:
            raise ConfigError(
                f"{group.runs[seed]} and {workdir} have the same configuration and seed {seed}; "
                "leave one out"
            )
        groups[key] = dataclasses.replace(group, runs={**group.runs, seed: workdir})
    _check_protocol(about)
    return _named_apart(list(groups.values()))


def settings_of(workdir: Path, after: tuple[Path, ...] = ()) -> tuple[dict[str, Any], int]:
    """The keys on which the results of a run depend, and its seed.

    Which stages it trains, in which order, is one of them. Settings of stages that the run does not
    train are left out, unless they describe a part. An `init_from` that names a run stands for the
    settings of that run, so that runs of several seeds that start from runs of these seeds are one
    group; if the folder is gone, for its path.

    Args:
      after: the runs whose `init_from` led here; one that starts from them stands for its path.

    Raises:
      CheckpointError: the configuration is damaged or of another version.
    """
    config = dict(values(read_config(workdir)))
    if missing := {"stages", "seed"} - config.keys():
        raise CheckpointError(
            f"{workdir / CONFIG} lacks the key {min(missing)!r}, so another version of unicom_jax "
            "wrote it; use that version, or train again"
        )
    before = (*after, workdir)
    trained = {one.name for one in occurrences(config["stages"])}
    unused = STAGES.keys() - PARTS.keys() - trained
    settings: dict[str, Any] = {"stages": tuple(config["stages"])}
    for name, value in config.items():
        group = name.partition(".")[0]
        if name == "seed" or group in unused or is_free(name) or KEYS[name].filled_in:
            continue
        settings[name] = value
        if name.endswith(".init_from") and names_a_run(value):
            folder, _, label = value.rpartition(":")
            if as_path(folder) not in before and (as_path(folder) / CONFIG).is_file():
                theirs, _ = settings_of(as_path(folder), before)
                settings[name] = f"settings {digest(theirs)}:{label}"
    return settings, config["seed"]


def _check_protocol(about: Mapping[Path, Mapping[str, Any]]) -> None:
    first = next(iter(about))
    for workdir, facts in about.items():
        for name in PROTOCOL:
            here, there = (one.get(name, USUAL.get(name)) for one in (facts, about[first]))
            if here != there:
                raise ConfigError(
                    f"{first} was scored with {name} {there!r}, {workdir} with {here!r}; evaluate "
                    "both in the same way"
                )


def _named_apart(groups: list[Group]) -> list[Group]:
    """Groups whose first folders have one name get their whole path."""
    names = [group.name for group in groups]
    return [
        dataclasses.replace(group, name=str(next(iter(group.runs.values()))))
        if names.count(group.name) > 1
        else group
        for group in groups
    ]


def steps_apart(group: Group) -> str:
    """Which checkpoint each seed was scored at, if not all at those of the same steps; else ""."""
    used = _checkpoints(group)
    if len(set(used.values())) == 1:
        return ""
    return "; ".join(f"seed {seed} at {steps}" for seed, steps in used.items())


def _checkpoints(group: Group) -> dict[int, str]:
    """Which checkpoints each seed was scored at."""
    return {
        seed: ", ".join((read_about(run / SCORES_FILE).get("checkpoints") or {}).values())
        for seed, run in group.runs.items()
    }


def differing(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """What groups differ in, with the value of each group: keys, where a group that does not train
    the key's stage has None and does not count; and the checkpoints that were scored."""
    found: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for group in groups for name in group.settings):
        known = [group.settings[name] for group in groups if name in group.settings]
        if any(value != known[0] for value in known):
            found[name] = [group.settings.get(name) for group in groups]
    scored = ["; ".join(dict.fromkeys(_checkpoints(group).values())) for group in groups]
    if len(set(scored)) > 1:
        found["scored"] = scored
    return found


def compare_groups(groups: Sequence[Group]) -> tuple[list[Comparison], dict[str, Measured]]:
    """Every further group against the first one, in all scores that all runs have.

    Raises:
      ConfigError: there are none.
    """
    runs = [run for group in groups for run in group.runs.values()]
    flat = [score_names(read_scores(run / SCORES_FILE)) for run in runs]
    names = [name for name in flat[0] if all(name in other for other in flat)]
    if not names:
        raise ConfigError(
            f"the runs have no score in common: {runs[0]} has {', '.join(flat[0]) or 'none'}; "
            "evaluate all with the same --suite"
        )
    scores: dict[str, Measured] = {}
    for name in names:
        found = {
            group.name: {
                seed: outcomes
                for seed, run in group.runs.items()
                if (outcomes := outcomes_of(run, name)) is not None
            }
            for group in groups
        }
        scores[name] = found
    first, *others = groups
    contrasts = [Contrast(name, other.name, first.name) for other in others for name in names]
    return compare(contrasts, scores, claimed=False), scores
