"""The sources that a configuration names: the one of `data.source`, or those of `data.sources`."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

from data_pipelines.faults import SourceError
from data_pipelines.sources.registry import (
    DOCUMENT_KINDS,
    WITHOUT_CAPTIONS,
    WITHOUT_PICTURES,
)

Config = Mapping[str, Any]
Part = tuple[str, str]  # source name and task: the unit of a mixture that has its own weight

NAME = re.compile(r"[\w.-]+")
DOCUMENT = "document"  # the task that reads finished documents
WORDS_ALONE = ("text", DOCUMENT)  # tasks whose sources need not have pictures with captions


@dataclasses.dataclass(frozen=True)
class ConfiguredSource:
    """One source of a configuration.

    Attributes:
      key: its place in the configuration, such as "data.sources[1]".
      name: its name in metrics and messages; "" for `data.source`, which is the only one.
      options: its kind, its path and the other options of `data.source`.
      weight: its share of what a stage reads.
      tasks: task -> share of the source; empty: the mixture of the stage.
      stages: those that read it; empty: all.
    """

    key: str
    name: str
    options: Config
    weight: float = 1.0
    tasks: Mapping[str, float] = dataclasses.field(default_factory=dict)
    stages: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.options["kind"]

    @property
    def has_documents(self) -> bool:
        """Whether its records are finished documents rather than pictures with texts."""
        return self.kind in DOCUMENT_KINDS

    def __str__(self) -> str:
        return f"source {self.name!r}" if self.name else self.key


def configured_sources(config: Config, stage: str = "") -> list[ConfiguredSource]:
    """The sources of a stage; "": those of the whole configuration.

    Raises:
      SourceError: two sources have the same name, or a name cannot be part of a metric's name.
    """
    data = config["data"]
    if not data["sources"]:
        return [ConfiguredSource("data.source", "", data["source"])]
    found = [
        ConfiguredSource(
            f"data.sources[{index}]",
            entry["name"] or default_name(entry),
            entry,
            entry["weight"],
            entry["tasks"],
            tuple(entry["stages"]),
        )
        for index, entry in enumerate(data["sources"])
    ]
    times = collections.Counter(source.name for source in found)
    for source in found:
        if not NAME.fullmatch(source.name):
            raise SourceError(
                f"{source.key}.name={source.name!r}: use letters, digits and the signs . _ - only"
            )
        if times[source.name] > 1:
            raise SourceError(
                f"{source.key} has the same name as another of data.sources, {source.name!r}: give "
                "one of them another name"
            )
    return [s for s in found if not stage or not s.stages or stage in s.stages]


def default_name(options: Config) -> str:
    """The last part of the path, else the kind."""
    last = pathlib.Path(options["path"]).name
    return re.sub(r"[^\w.-]+", "_", last).strip("_") or options["kind"]


def source_kinds(config: Config) -> list[str]:
    """The kinds of a configuration's sources, each once."""
    return list(dict.fromkeys(one.kind for one in configured_sources(config)))


def picture_sources(
    config: Config, stage: str = "", *, captioned: bool = True
) -> list[ConfiguredSource]:
    """The sources that have pictures (with captions if `captioned`), for stages without a mixture
    and for scores.

    A source whose only tasks are texts is left out, unless it names the stage.

    Raises:
      SourceError: there is none, or a source without pictures names the stage.
    """
    found = configured_sources(config, stage)
    wanted = "pictures with captions" if captioned else "pictures"
    unfit = WITHOUT_CAPTIONS if captioned else WITHOUT_PICTURES
    for source in found:
        if source.kind in unfit and stage in source.stages:
            raise SourceError(
                f"{source.key}: the stage {stage!r} reads {wanted}, which kind {source.kind!r} "
                "does not have: leave the stage out of its stages"
            )
    useful = [
        source
        for source in found
        if source.kind not in unfit
        and (not source.tasks or stage in source.stages or set(source.tasks) - set(WORDS_ALONE))
    ]
    if not useful:
        raise SourceError(
            f"no source of {'data.sources' if config['data']['sources'] else 'data.source'} has "
            f"{wanted}, which {f'the stage {stage!r}' if stage else 'this'} needs: add one"
        )
    return useful


def part_weights(config: Config, stage: str) -> dict[Part, float]:
    """The weight of each source and task in a stage's mixture.

    Raises:
      SourceError: as `configured_sources`, or a source cannot serve a task.
    """
    mixture, weights = config[stage]["mixture"], {}
    for source in configured_sources(config, stage):
        given = sorted((source.tasks or mixture).items()) if source.name else mixture.items()
        tasks = {task: share for task, share in given if share}
        whole = sum(tasks.values()) if source.name else 1.0  # a single source is unscaled
        for task, share in tasks.items():
            if source.has_documents and task != DOCUMENT:
                raise SourceError(
                    f"{source.key}: kind {source.kind!r} has finished documents, which the task "
                    f"{task!r} cannot read: give it the task {DOCUMENT!r} alone"
                )
            weights[source.name, task] = source.weight * share / whole
    return weights


def mixture_parts(config: Config, stage: str) -> tuple[Part, ...]:
    """The parts of a stage's mixture in the order of their numbers. They are sorted by name, so
    packed rows do not depend on the order in which a configuration lists its sources."""
    return tuple(sorted(part for part, weight in part_weights(config, stage).items() if weight))


def narrow(
    config: MutableMapping[str, Any], stage: str, *, task: str = "", source: str = ""
) -> None:
    """Reduces the mixture of a stage to one task or one source. Changes `config` in place."""
    mixture = {name: share for name, share in config[stage]["mixture"].items() if share}
    kept = []
    if config["data"]["sources"]:
        weights = part_weights(config, stage)
        for one in configured_sources(config, stage):
            tasks = {
                name: share
                for (owner, name), share in weights.items()
                if owner == one.name and task in ("", name) and source in ("", owner)
            }
            if tasks:
                weight = sum(tasks.values())
                kept.append({**one.options, "name": one.name, "tasks": tasks, "weight": weight})
        mixture = {}
    elif task:
        mixture = {task: 1.0}
    config["data"]["sources"] = tuple(kept)
    for name in config[stage]["mixture"]:
        config[stage]["mixture"][name] = float(mixture.get(name, 0.0))
    config[stage]["window_documents"] = 0  # as many as suit this part
