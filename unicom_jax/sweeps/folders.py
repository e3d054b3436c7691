"""The folders of jobs: workdirs that begin with stages which other jobs have trained.

A finished stage is given on as hard links to its checkpoints, which are never changed in place, and
as copies of its small files; in an object store, which has no links, it is copied within the store.
So each folder is complete: `unicom sample`, `evaluate`, `report` and `export` read it, and it stays
usable when the others are removed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unicom_jax.config import KEYS, ConfigError, to_json, values
from unicom_jax.config.files import set_values
from unicom_jax.core.paths import copy_file, copy_tree, is_remote, remove_tree
from unicom_jax.interop.atomic import new_folder, write_text
from unicom_jax.models.paint_space import AUTOENCODER
from unicom_jax.runs.configuration import read_config
from unicom_jax.runs.data import DATA
from unicom_jax.runs.origin import link_tree
from unicom_jax.runs.workdir import COMMITTED, CONFIG, read_json, stage_steps
from unicom_jax.sweeps.outdated import remedy, trained_anew
from unicom_jax.sweeps.plan import Job, read_job

CHECKPOINTS, TOKENIZER = "checkpoints", "tokenizer"
MARKS = (COMMITTED, "_CHECKPOINT_METADATA")  # without them a step in a store is not complete


def prepare(workdir: Path, job: Job) -> Path:
    """The folder of a job with all that it begins with. What is there stays, so that it can be
    called again after an interruption.

    Args:
      workdir: of the sweep.

    Raises:
      ConfigError: a stage that it needs is not there, or was trained anew since, or two of them
        have other tokenizers.
    """
    folder = job.folder(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / CONFIG).is_file():
        for label in job.inputs:
            if trained_anew(workdir, job, label):
                raise ConfigError(remedy(job, label))
        return folder
    givers = {label: read_job(workdir, id).folder(workdir) for label, id in job.inputs.items()}
    for label, giver in givers.items():
        _give_stage(giver / label, folder / label)
    if givers:
        _give_tokenizer(givers, folder)
        _give_data(givers, folder)
    write_text(folder / CONFIG, to_json(_filled_in(job, list(givers.values()))))
    return folder


def _give_stage(source: Path, target: Path) -> None:
    steps = stage_steps(source.parent, source.name)
    if not steps:
        raise ConfigError(f"{source} has no checkpoint; run the sweep again")
    if is_remote(target):
        if stage_steps(target.parent, target.name) != steps:  # new, or a copy was interrupted
            remove_tree(target)
            _copy_stage(source, target)
        return
    if target.exists():
        return
    with new_folder(target, replace=True) as part:
        (part / CHECKPOINTS).mkdir()
        for step in steps:
            link_tree(source / CHECKPOINTS / str(step), part / CHECKPOINTS / str(step))
        for path in source.iterdir():
            if path.is_file():
                shutil.copy2(path, part / path.name)


def _copy_stage(source: Path, target: Path) -> None:
    """Within a store. Its steps are complete last."""
    for path in source.iterdir():
        if path.is_file():
            copy_file(path, target / path.name)
    copy_tree(source / CHECKPOINTS, target / CHECKPOINTS, last=MARKS)


def _give_tokenizer(givers: Mapping[str, Path], folder: Path) -> None:
    found = {read_config(giver)["data"]["tokenizer_fingerprint"] for giver in givers.values()}
    if len(found) > 1:
        raise ConfigError(
            f"{folder}: the stages {', '.join(givers)} have other tokenizers; name one for all in "
            "data.tokenizer"
        )
    giver = list(givers.values())[-1]
    if is_remote(folder):
        copy_tree(giver / TOKENIZER, folder / TOKENIZER)
    else:
        with new_folder(folder / TOKENIZER, replace=True) as part:
            shutil.copytree(giver / TOKENIZER, part, dirs_exist_ok=True)
    if AUTOENCODER in givers:  # is the stage of that name, which is already there
        return
    for giver in givers.values():
        if (giver / AUTOENCODER).is_dir():
            remove_tree(folder / AUTOENCODER)  # incomplete if an earlier attempt was interrupted
            link_tree(giver / AUTOENCODER, folder / AUTOENCODER)
            break


def _give_data(givers: Mapping[str, Path], folder: Path) -> None:
    """What the data looked like, so that a stage refuses data that changed since."""
    kept: dict[str, Any] = {}
    for giver in givers.values():
        if (giver / DATA).is_file():
            found = read_json(giver / DATA, ConfigError)
            kept = {**found, "windows": kept.get("windows", {}) | found.get("windows", {})}
    if kept:
        write_text(folder / DATA, json.dumps(kept, indent=2) + "\n")


def _filled_in(job: Job, givers: list[Path]) -> Any:
    """The configuration of a job, with what the stages before it have filled in."""
    config = job.configuration()
    for giver in givers:
        given = dict(values(read_config(giver)))
        own = [name for name, key in KEYS.items() if key.filled_in and key.item is not tuple]
        set_values(config, {name: given[name] for name in own if given[name]})
    return config


def used_bytes(folder: Path) -> int:
    """Of the files of a folder that no other folder links to."""
    if is_remote(folder):
        return sum(about["size"] for about in folder.details(below=True).values())
    files = (path.lstat() for path in folder.rglob("*") if path.is_file())
    return sum(found.st_size for found in files if found.st_nlink == 1)
