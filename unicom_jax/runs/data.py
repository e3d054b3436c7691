"""The data of a run, kept in its `data.json`: what they looked like when it started, and how many
documents each stage packs into a window.

Both decide its batches. The number of documents is measured on what can be read at that moment, so
measuring it again on another host or at another start could give another one.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data_pipelines.build import data_identity, row_facts, window_documents
from data_pipelines.sequences.tokenizer import Tokenizer
from data_pipelines.sources.identity import changes, fingerprint, from_json
from unicom_jax.config import ConfigError
from unicom_jax.runs.checkpoint import is_import, stage_steps

DATA = "data.json"


def keep_data(
    config: ConfigDict, tokenizer: Tokenizer, workdir: Path, mixed: tuple[str, ...]
) -> list[str]:
    """Checks that the data are those that the run was started with, and fills in how many documents
    a window of its stages has.

    Nothing is read where all stages of the configuration are finished.

    Args:
      config: of the run; `window_documents` of the stages in `mixed` is set in it.
      mixed: the stages that train on packed documents.

    Returns:
      How data differ that changed with the user's consent, in words; nothing where they are the
      same.

    Raises:
      ConfigError: the data changed, or are not those of `data.fingerprint`.
      SourceError: there are no data.
    """
    pending = [stage for stage in config.stages if not _is_finished(config, workdir, stage)]
    if not pending:
        return []
    path = workdir / DATA
    stored = _read(path)
    told = _check_identity(config, workdir, stored)
    windows = stored.setdefault("windows", {})
    for stage in pending:
        if stage in mixed and not config.data.packed:
            kept = _window(config, stage, tokenizer, windows.get(stage))
            windows[stage], config[stage].window_documents = kept, kept["documents"]
    _write(path, stored)
    return told


def _is_finished(config: ConfigDict, workdir: Path, stage: str) -> bool:
    steps = stage_steps(workdir, stage)
    checkpoints = workdir / stage / "checkpoints"
    return (
        bool(steps) and steps[-1] >= config[stage].steps and not is_import(checkpoints, steps[-1])
    )


def _check_identity(config: ConfigDict, workdir: Path, stored: dict[str, Any]) -> list[str]:
    """Compares the data with those of the run and of `data.fingerprint`, and stores what is new."""
    now, folder = data_identity(config)
    present, wanted = fingerprint(now), config.data.fingerprint
    before = stored.get("identity")
    if before is None:
        if wanted not in ("", present):
            raise ConfigError(
                f"data.fingerprint={wanted!r} names other data than those at "
                f"{config.data.source.path}, which have {present}: look for the data that were "
                'meant, or set it to ""'
            )
        told = []
    elif told := changes(from_json(before), now, folder):
        if wanted != present:
            raise ConfigError(
                f"{workdir}: the data changed since this run was started: {'; '.join(told)}: put "
                "them back, start another --workdir, or train on with them, with "
                f"--config.data.fingerprint={present}"
            )
        stored.setdefault("earlier", []).append({"fingerprint": stored["fingerprint"]})
    stored["identity"], stored["fingerprint"] = now, present
    return told


def _window(
    config: ConfigDict, stage: str, tokenizer: Tokenizer, kept: dict[str, Any] | None
) -> dict[str, Any]:
    """The window of a stage: the kept one, unless the configuration decides on another."""
    given = config[stage].window_documents
    about = json.dumps([row_facts(config, stage), tokenizer.fingerprint()], default=list)
    facts = hashlib.sha256(about.encode()).hexdigest()[:16]
    if kept and kept["facts"] == facts and given in (0, kept["documents"]):
        return kept
    return {"facts": facts, "documents": window_documents(config, stage, tokenizer)}


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigError(
            f"{path} is not JSON ({error}): restore it from a copy, or delete it if the data did "
            "not change"
        ) from error


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2)
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return
    part = path.with_suffix(".part")  # whole or not at all: other processes read it
    part.write_text(text, encoding="utf-8")
    part.replace(path)
