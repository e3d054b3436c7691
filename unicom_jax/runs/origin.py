"""`STAGE.init_from=WORKDIR:STAGE`: a stage that starts from the weights of another run.

In this way several runs can share earlier stages: a sweep over the learning rates of the last
stage, for example, trains the stages before it once. When the new workdir starts, it takes over the
weights as step 0 of its stage, along with the tokenizer and every part that the stage reads and
this run does not train (encoder, codec, autoencoder). So it needs the other run only once, and
`sample`, `evaluate` and `export` read it like any other workdir. If both workdirs are on one file
system, files are hard links and take no additional space; otherwise they are copies. Checkpoints
are never changed in place.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console

from data_pipelines.sequences.tokenizer import Tokenizer, TokenizerError, load_tokenizer
from unicom_jax.config import ConfigError
from unicom_jax.core.module import Module
from unicom_jax.core.paths import as_path, copy_tree, is_remote
from unicom_jax.models.paint_space import AUTOENCODER
from unicom_jax.runs.checkpoint import PARAMS, copy_step, read_config
from unicom_jax.runs.released import given_folders
from unicom_jax.runs.sizes import COMPUTE
from unicom_jax.runs.stages import (
    PARTS,
    STAGES,
    Occurrence,
    names_a_run,
    occurrences,
    parse,
    spec_of,
)
from unicom_jax.runs.trained import furthest
from unicom_jax.runs.workdir import stage_steps

Config = Mapping[str, Any]
# Module fields that do not change the meaning of weights: how they compute, what a loss draws.
NEUTRAL = (*COMPUTE, "compute_dtype", "text_chunk", "flow_time", "time_floor")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the weights of a stage come from.

    Attributes:
      stage: the stage that starts from them.
      workdir: workdir of the other run.
      source: stage of the other run.
    """

    stage: Occurrence
    workdir: Path
    source: Occurrence

    def __str__(self) -> str:
        return f"{self.stage.name}.init_from={self.workdir}:{self.source.label}"


def origins(config: Config) -> list[Origin]:
    """The origins that the configuration names, in the order of the registry.

    Raises:
      ConfigError: an `init_from` has another form, or its stage starts from an earlier one.
    """
    found = []
    for name, spec in STAGES.items():
        given = config[name].get("init_from", "") if name in config else ""
        if given and not names_a_run(given) and name not in PARTS:
            raise ConfigError(
                f"{name}.init_from={given}: give WORKDIR:STAGE, for example runs/base:{name}; a "
                f"folder of released weights belongs in {spec.part}.init_from"
            )
        if not names_a_run(given):
            continue
        workdir, _, label = given.rpartition(":")
        origin = Origin(Occurrence(name), as_path(workdir), parse(label))
        if origin.source.spec.part != spec.part:
            raise ConfigError(
                f"{origin}: stage {label} trains the part {origin.source.spec.part}, but {name} "
                f"trains the part {spec.part}; name a stage that trains the same part"
            )
        _check_first(config, origin)
        found.append(origin)
    return found


def _check_first(config: Config, origin: Origin) -> None:
    name, part = origin.stage.name, origin.stage.spec.part
    listed = [one.name for one in occurrences(config["stages"]) if one.spec.part == part]
    if listed and listed[0] != name:
        raise ConfigError(
            f"{origin}: config.stages trains {listed[0]} first, from which {name} would start; "
            f"remove {listed[0]} from the stages, or the init_from"
        )
    if not listed and name not in PARTS:
        raise ConfigError(f"{origin}: config.stages does not train {name}; add it, or unset this")


def given_parts(config: Config) -> set[str]:
    """The parts that come whole from another run."""
    return {
        part
        for origin in origins(config)
        for part in (*_needed(config, origin), origin.stage.spec.part)
    }


def _needed(config: Config, origin: Origin) -> list[str]:
    """The parts, besides its own, that a stage needs of the other run if it starts from an origin.
    What it reads for rewards alone may come from a folder of released weights instead."""
    spec = origin.stage.spec
    parts = dict.fromkeys(subtree.part for subtree in spec.reads(config).values())
    compared = (subtree.part for subtree in spec.for_rewards(config).values())
    given = [part for part in compared if given_folders(config, part)]
    return [part for part in parts if part not in (spec.part, *given)]


def _of_use(config: Config, origin: Origin) -> list[str]:
    """The parts from which the stage's weights began. The stage does not need them, but evaluation
    may use them, such as the encoder."""
    begun = origin.stage.spec.begins_with(config).values()
    return list(dict.fromkeys(subtree.part for subtree in begun))


# ---- the tokenizer ----------------------------------------------------------------------------


def given_tokenizer(config: Config, workdir: Path) -> Tokenizer | None:
    """The other run's tokenizer, unless the configuration names a tokenizer or packed rows; None if
    it names no other run."""
    if config["data"]["tokenizer"] or config["data"]["packed"]:
        return None
    for origin in _wanted(config, workdir):
        return load_tokenizer(origin.workdir / "tokenizer")
    return None


def check_tokenizers(config: Config, workdir: Path) -> None:
    """Refuses weights that were trained with another tokenizer.

    Raises:
      TokenizerError: tokenizers differ; the message names the key and both fingerprints.
    """
    ours = config["data"]["tokenizer_fingerprint"]
    for origin in _wanted(config, workdir):
        theirs = read_config(origin.workdir)["data"]["tokenizer_fingerprint"]
        if theirs != ours:
            raise TokenizerError(
                f"{origin}: that run was trained with tokenizer {theirs}, this one has {ours}; use "
                f"--config.data.tokenizer={origin.workdir / 'tokenizer'} in a new --workdir"
            )


def take_autoencoder(config: Config, workdir: Path) -> None:
    """Links the other run's autoencoder into a workdir that has none."""
    for origin in _wanted(config, workdir):
        there, here = origin.workdir / AUTOENCODER, workdir / AUTOENCODER
        if there.is_dir() and not here.exists() and config["codec"]["autoencoder"]["path"]:
            link_tree(there, here)


def _wanted(config: Config, workdir: Path) -> Iterator[Origin]:
    """The origins that `workdir` has not taken over yet.

    Raises:
      ConfigError: the other run has no such checkpoint.
    """
    for origin in origins(config):
        if stage_steps(workdir, origin.stage.label):
            continue
        if not stage_steps(origin.workdir, origin.source.label):
            raise ConfigError(
                f"{origin}: there is no checkpoint under "
                f"{origin.workdir / origin.source.label / 'checkpoints'}; give WORKDIR:STAGE of a "
                "stage that was trained"
            )
        yield origin


# ---- the weights ------------------------------------------------------------------------------


def take_weights(config: ConfigDict, workdir: Path, console: Console) -> None:
    """Puts the weights that stages start from or read into `workdir`; existing ones are kept.

    Everything is checked before anything is taken, so that a refused start leaves no weights that a
    corrected start would mix with those of another run.

    Raises:
      ConfigError: the other run lacks weights, or its modules are not those of `config`.
    """
    planned: dict[str, tuple[Origin, str]] = {}  # label here -> origin, label there
    for origin in _wanted(config, workdir):
        planned |= _plan(config, workdir, origin, planned)
    for label, (origin, source) in planned.items():
        _take(origin.workdir, source, workdir, label, console)


def _plan(
    config: Config, workdir: Path, origin: Origin, planned: Mapping[str, tuple[Origin, str]]
) -> dict[str, tuple[Origin, str]]:
    """What an origin provides in addition to what is `planned`. The stage that starts from it comes
    last, because its weights mark everything as taken."""
    theirs = read_config(origin.workdir)
    own = origin.stage.spec.part
    there = {one.spec.part for one in occurrences(config["stages"]) if one.spec.part != own}
    there |= {spec_of(label).part for label in planned}
    found = {}
    needed = _needed(config, origin)
    for part in dict.fromkeys((*needed, *_of_use(config, origin))):
        if part in there or furthest(config, workdir, part, origin.stage):
            continue
        source = furthest(theirs, origin.workdir, part, origin.source)
        if source is None and part in needed:
            hint = ""
            if part in {one.part for one in origin.stage.spec.for_rewards(config).values()}:
                hint = f"; give {part}.init_from, or set {origin.stage.name}.rewards.cosine=0"
            raise ConfigError(f"{origin}: {origin.workdir} has no weights of the part {part}{hint}")
        if source is None:
            continue
        _check_same(origin, part, config, theirs)
        found[source.label] = origin, source.label
    _check_same(origin, own, config, theirs)
    return {**found, origin.stage.label: (origin, origin.source.label)}


def _take(there: Path, source: str, here: Path, label: str, console: Console) -> None:
    """Atomically makes the newest weights of one run's stage step 0 of another run's stage."""
    step = stage_steps(there, source)[-1]
    given, target = there / source / "checkpoints" / str(step), here / label / "checkpoints" / "0"
    if is_remote(here) or is_remote(there):
        copy_step(given, target, PARAMS)
    else:
        half = target.with_name("copying")
        shutil.rmtree(half, ignore_errors=True)
        link_tree(given / PARAMS, half / PARAMS)
        for path in given.iterdir():
            if path.is_file():
                shutil.copy2(path, half / path.name)
        half.rename(target)
    console.print(f"{label}: the weights of {there / source} at step {step}", soft_wrap=True)


def link_tree(source: Path, target: Path) -> None:
    """Copies a folder whose files are never changed in place, as hard links if possible.

    Raises:
      FileExistsError: `target` exists.
    """
    if is_remote(source) or is_remote(target):
        copy_tree(source, target)
        return
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)


def _check_same(origin: Origin, part: str, config: Config, theirs: Config) -> None:
    """Refuses weights that have another meaning in the modules of `config`."""
    build = PARTS[part].build
    for field, there, here in differences(build(theirs), build(config), part):
        raise ConfigError(
            f"{origin}: {field} is {there!r} there and {here!r} here; use the sizes of "
            f"{origin.workdir / 'config.json'}"
        )


def differences(left: Any, right: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """(field, value, value) wherever two modules differ, except in `NEUTRAL` fields."""
    if type(left) is not type(right):
        yield name, type(left).__name__, type(right).__name__
    elif isinstance(left, Module):
        for field in dataclasses.fields(left):
            if field.name not in NEUTRAL:
                values = (getattr(one, field.name) for one in (left, right))
                yield from differences(*values, f"{name}.{field.name}")
    elif left != right:
        yield name, left, right
