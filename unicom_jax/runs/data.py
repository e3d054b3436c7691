"""Facts about the data of a run, kept in its `data.json`: their state when it started, how many
documents each stage packs into a window and, if weights are by tokens, how many slots a document of
each source and task has.

All of these determine the batches. They are measured on what can be read at that moment, so
measuring them again on another host or at a later start could give other numbers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.batches import document_tokens, row_facts, window_documents
from data_pipelines.build import data_identity
from data_pipelines.sequences.tokenizer import Tokenizer
from data_pipelines.sources.configured import configured_sources
from data_pipelines.sources.identity import (
    fingerprint,
    from_json,
    joined_identity,
    source_differences,
)
from unicom_jax.config import ConfigError
from unicom_jax.interop.atomic import write_text
from unicom_jax.runs.checkpoint import is_import
from unicom_jax.runs.configuration import any_started
from unicom_jax.runs.stages import STAGES, Occurrence, occurrences
from unicom_jax.runs.workdir import read_json, stage_steps

DATA = "data.json"


def keep_data(
    config: ConfigDict,
    tokenizer: Tokenizer,
    workdir: Path,
    *,
    first: bool = True,
) -> list[str]:
    """Checks that the data are those that the run was started with, and fills in the number of
    documents in a window of its stages and their lengths.

    Nothing is read if the unfinished stages train on packed rows, and nothing is compared before a
    stage has a checkpoint.

    Args:
      config: the run's configuration; `window_documents` and `document_tokens` of the stages that
        pack rows are set in it.
      first: whether this is the first process of the run; the others read what it has written.

    Returns:
      Descriptions of the differences of data that changed with the user's consent; empty if they
      are the same.

    Raises:
      ConfigError: the data changed, or are not those of `data.fingerprint`, or processes see
        different data.
      SourceError: there are no data.
    """
    pending = dict.fromkeys(
        stage.name
        for stage in occurrences(config.stages)
        if not _is_finished(config, workdir, stage)
    )
    if not pending:
        return []
    path = workdir / DATA
    kept = path.is_file() and (not first or any_started(workdir))
    stored = read_json(path, ConfigError) if kept else {}
    packed = bool(config.data.packed)
    from_source = [name for name in pending if not (packed and STAGES[name].loader == "rows")]
    changed = _check_identity(config, workdir, stored, first) if from_source else []
    windows = stored.setdefault("windows", {})
    for stage in from_source:
        if STAGES[stage].loader == "rows":
            windows[stage] = _window(config, stage, tokenizer, windows.get(stage))
    if first:
        write_text(path, json.dumps(stored, indent=2) + "\n")
    return changed


def source_changes(config: Mapping[str, Any], workdir: Path) -> list[str]:
    """Descriptions of how the source differs from the one that a run was trained on.

    Empty if it is the same, or if the run did not record the state of the source. Packed rows are
    not compared.

    Raises:
      ConfigError: data.json cannot be read.
      SourceError: there are no data.
    """
    path = workdir / DATA
    before = read_json(path, ConfigError).get("identity", {}) if path.is_file() else {}
    if not before:
        return []
    return source_differences(from_json(before), data_identity(config))


def _is_finished(config: ConfigDict, workdir: Path, stage: Occurrence) -> bool:
    steps, checkpoints = stage_steps(workdir, stage.label), workdir / stage.label / "checkpoints"
    if not steps or is_import(checkpoints, steps[-1]):
        return False
    return steps[-1] >= config[stage.name].steps


def _check_identity(
    config: ConfigDict, workdir: Path, stored: dict[str, Any], first: bool
) -> list[str]:
    """Compares the data with those of the run and of `data.fingerprint`, and stores what is new."""
    found = data_identity(config)
    now = joined_identity(found)
    present, wanted = fingerprint(now), config.data.fingerprint
    if "identity" not in stored:
        if wanted not in ("", present):
            raise ConfigError(
                f"data.fingerprint={wanted!r} is not that of the data at {_paths(config)}, which "
                f'have {present}: give the path of the data that were meant, or set it to ""'
            )
        changed = []
    elif changed := source_differences(from_json(stored["identity"]), found):
        if not first:
            raise ConfigError(
                f"this process sees other data than process 0: {'; '.join(changed)}: give all "
                "processes the same data"
            )
        if wanted != present:
            raise ConfigError(
                f"{workdir}: the data changed since this run was started: {'; '.join(changed)}: "
                "restore the old data, start another --workdir, or continue with the changed "
                f"data: add --config.data.fingerprint={present}"
            )
        stored.setdefault("earlier", []).append(stored["fingerprint"])
    stored["identity"], stored["fingerprint"] = now, present
    return changed


def _paths(config: ConfigDict) -> str:
    return ", ".join(str(one.options["path"]) for one in configured_sources(config))


def _window(
    config: ConfigDict, stage: str, tokenizer: Tokenizer, kept: dict[str, Any] | None
) -> dict[str, Any]:
    """The window of a stage: the kept one unless the configuration requires another. It is also set
    in the configuration.
    """
    given = config[stage].window_documents
    rows = row_facts(config, stage)
    for source in rows["sources"].values() if "sources" in rows else [rows["source"]]:
        source.pop("path", None)  # data may move
    about = json.dumps([rows, tokenizer.fingerprint()], default=list)
    facts = hashlib.sha256(about.encode()).hexdigest()[:16]
    if not (kept and kept["facts"] == facts and given in (0, kept["documents"])):
        kept = {"facts": facts}
        if config.data.weight_unit == "tokens":
            config[stage].document_tokens = document_tokens(config, stage, tokenizer)
            kept["tokens"] = config[stage].document_tokens
        kept["documents"] = window_documents(config, stage, tokenizer)
    config[stage].document_tokens = tuple(tuple(pair) for pair in kept.get("tokens", ()))
    config[stage].window_documents = kept["documents"]
    return kept
