"""For which stages a workdir has weights, and which of these a later stage or a user reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unicom_jax.config import ConfigError
from unicom_jax.runs.items import CheckpointError
from unicom_jax.runs.stages import STAGES, Occurrence, in_order, parse
from unicom_jax.runs.workdir import stage_steps

Config = Mapping[str, Any]


def trained_stages(workdir: Path) -> list[Occurrence]:
    """The stages with a checkpoint in `workdir`, imported ones among them."""
    folders = (path.name for path in workdir.iterdir()) if workdir.is_dir() else ()
    return [found for name in folders if (found := parse(name)) and stage_steps(workdir, name)]


def stages_before(config: Config, workdir: Path, stage: Occurrence) -> list[Occurrence]:
    """The stages with a checkpoint that come before `stage`."""
    there = trained_stages(workdir)
    order = in_order(config, (*there, stage))
    return [one for one in order[: order.index(stage)] if one in there]


def furthest(
    config: Config, workdir: Path, part: str, before: Occurrence | None = None
) -> Occurrence | None:
    """The furthest stage that trained a part, of all or of those `before` one; None if none did."""
    there = trained_stages(workdir)
    order = in_order(config, there) if before is None else stages_before(config, workdir, before)
    trained = [one for one in order if one in there and one.spec.part == part]
    return trained[-1] if trained else None


def starts_from(config: Config, workdir: Path, stage: Occurrence) -> Occurrence | None:
    """The furthest earlier stage of the same part, from whose weights a stage starts; None if there
    is none, so that it starts from random initialisation.

    Raises:
      ConfigError: it would start from random initialisation although a later stage has weights;
        those would stay in use, and what this stage learns would be lost.
    """
    part = stage.spec.part
    if earlier := furthest(config, workdir, part, before=stage):
        return earlier
    later = furthest(config, workdir, part)
    if later is not None and later != stage:
        raise ConfigError(
            f"{stage.label} would not start from the weights of {later.label} in {workdir}, which "
            f"comes after it, and {later.label} would still be the stage in use; list "
            f"{later.label} before {stage.label} in config.stages, continue {later.label}, or use "
            "another --workdir"
        )
    return None


def source_label(config: Config, workdir: Path, part: str, before: Occurrence | None = None) -> str:
    """The folder of the `furthest` stage. If there is none, that of the stage that should have been
    trained, so that reading it fails with its name."""
    if found := furthest(config, workdir, part, before):
        return found.label
    return first_of(config, part).label


def check_order(config: Config, workdir: Path, stages: Sequence[Occurrence]) -> None:
    """Refuses a stage that builds on weights that neither `workdir` nor an earlier one of `stages`,
    the stages to train, provides.

    Raises:
      CheckpointError: there is such a stage; the message names both stages.
    """
    for place, stage in enumerate(stages):
        if stage_steps(workdir, stage.label):
            continue  # a fault of the folder is found when it is read
        new = {one.spec.part for one in stages[:place]}
        follows = stage.spec.part in new or starts_from(config, workdir, stage)
        begins = {} if follows else stage.spec.begins_with(config)
        for subtree in (*stage.spec.reads(config).values(), *begins.values()):
            part = subtree.part
            source = source_label(config, workdir, part, before=stage)
            if part not in new and not stage_steps(workdir, source):
                able = [
                    name
                    for name, spec in STAGES.items()
                    if spec.part == part and not spec.samples and name != stage.name
                ]
                listed = [name for name in config["stages"] if name in able]
                if any(one.name in able for one in stages[place:]):
                    cure = "list it earlier in config.stages"
                elif listed:
                    cure = f"train {listed[0]} first"
                else:
                    cure = f"list {able[0]} before {stage.label} in config.stages"
                if subtree in stage.spec.for_rewards(config).values():
                    cure += f", set {stage.name}.rewards.cosine=0"
                raise CheckpointError(
                    f"stage {stage.label} builds on {' or '.join(able)}, and {workdir} has no "
                    f"checkpoint of it: {cure}, or import its weights"
                )


def first_of(config: Config, part: str) -> Occurrence:
    """The first stage of `config.stages` that trains a part; if none does, of the registry."""
    listed = [name for name in config["stages"] if name in STAGES and STAGES[name].part == part]
    return Occurrence((*listed, *(n for n, spec in STAGES.items() if spec.part == part))[0])
