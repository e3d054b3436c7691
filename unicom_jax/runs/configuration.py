"""The configuration that a workdir holds: stored, completed for this version, compared, changed.

What a resumed run may change is declared with each key (`config.key`): neutral keys always,
recorded ones with `--allow-change`, structural ones never. Any key may change as long as no stage
that depends on it has started.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from unicom_jax.config import (
    KEYS,
    ConfigError,
    apply_overrides,
    complete,
    from_json,
    load_config,
    to_json,
    values,
)
from unicom_jax.config.files import check_values
from unicom_jax.config.key import NEUTRAL, RECORDED, STRUCTURAL
from unicom_jax.config.schema import declared
from unicom_jax.interop.atomic import write_text
from unicom_jax.runs.stages import STAGES, UNIFIED, parse, spec_of
from unicom_jax.runs.workdir import CONFIG, HISTORY, read_json, stage_steps


def open_run(
    workdir: Path, path: str | None, overrides: Iterable[str], *, allow_change: bool = False
) -> ConfigDict:
    """The configuration of a run that starts or resumes in `workdir`. Nothing is written.

    Args:
      path: a configuration file; None: the stored configuration.
      allow_change: accept other values of recorded keys.

    Raises:
      ConfigError: no configuration is given and none stored, the stored one is damaged, or the
        given one contradicts it.
    """
    stored = read_config(workdir) if (workdir / CONFIG).is_file() else None
    if path is None and stored is None:
        raise ConfigError(f"{workdir} holds no run yet; give --config=experiments/quickstart.py")
    if path is None:
        present = {name for name, _ in values(stored)}
        if missing := [name for name in KEYS if name not in present]:
            raise ConfigError(
                f"{workdir / CONFIG} lacks the key {missing[0]}, so another version of unicom_jax "
                "wrote it; use that version, or start another --workdir"
            )
        config = from_json(stored)
        try:
            check_values(config)
        except ConfigError as error:
            raise ConfigError(f"{workdir / CONFIG}: {error}") from error
    else:
        config = load_config(path)
    if stored is not None and any_started(workdir):
        # A run keeps the rules that it started with, whatever the defaults are now.
        config.stage_seeds = stored["stage_seeds"]
        for name in ("balance_rows", "fill_rows"):
            config.data[name] = stored["data"][name]
    apply_overrides(config, overrides)
    if stored is not None:
        for name, old, new in sorted(differences(stored, config), key=_weight):
            _check_change(name, old, new, workdir, stored, allow_change)
        if any_started(workdir):
            config.data.tokenizer_fingerprint = stored["data"].get("tokenizer_fingerprint", "")
    return config


def read_config(workdir: Path) -> dict[str, Any]:
    """The configuration that a workdir holds, completed for this version.

    Raises:
      ConfigError: it is damaged, or from a version with other keys.
    """
    path = workdir / CONFIG
    try:
        stored = complete(read_json(path, ConfigError))
    except ConfigError as error:
        text = str(error)
        raise ConfigError(text if str(path) in text else f"{path}: {text}") from error
    if unknown := [name for name, _ in values(stored) if name not in KEYS]:
        raise ConfigError(
            f"{path} has the key {unknown[0]}, which this version of unicom_jax does not know; use "
            "the version that wrote it, or remove the key"
        )
    return stored


def store(config: ConfigDict, workdir: Path) -> None:
    """Writes config.json and appends changes to the history; each file is written atomically."""
    path, text = workdir / CONFIG, to_json(config)
    if path.is_file():
        stored = read_config(workdir)
        if json.loads(json.dumps(stored, default=list)) == json.loads(text):
            return
        changes = {
            name: [old, new]
            for name, old, new in differences(stored, config)
            if declared(name).resume != NEUTRAL
        }
        if changes:
            line = {
                "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "steps": _steps(workdir),
                "changes": changes,
            }
            history = workdir / HISTORY
            before = history.read_text(encoding="utf-8") if history.is_file() else ""
            write_text(history, before + json.dumps(line, ensure_ascii=False) + "\n")
    write_text(path, text)


def _steps(workdir: Path) -> dict[str, int]:
    """The newest checkpoint of each stage and of each of its repetitions."""
    names = (path.name for path in workdir.iterdir()) if workdir.is_dir() else ()
    labels = sorted(name for name in names if parse(name))
    return {label: steps[-1] for label in labels if (steps := stage_steps(workdir, label))}


def data_start(workdir: Path, stage: str, batches: int, batch_size: int) -> int:
    """The batch, counted in `batch_size`, at which a stage that has read `batches` batches resumes.

    This is `batches` itself unless the batch size has changed: then it follows from the number of
    rows that were read, so that none is read twice.

    Args:
      stage: the stage's label (`runs/stages.py`).
    """
    rows, since, size = 0, 0, batch_size
    for step, old, new in _batch_changes(workdir, stage):
        if step <= batches:
            rows, since, size = rows + (step - since) * old, step, new
    return -(-(rows + (batches - since) * size) // batch_size) if rows else batches


def _batch_changes(workdir: Path, stage: str) -> list[tuple[int, int, int]]:
    """(step, old size, new size) for each change of a stage's batch size, oldest first.

    Raises:
      ConfigError: the history is damaged.
    """
    path = workdir / HISTORY
    if not path.is_file():
        return []
    key = f"{spec_of(stage).name}.batch_size"
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            (entry["steps"][stage], *entry["changes"][key])
            for entry in entries
            if key in entry["changes"] and stage in entry["steps"]
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); restore it from a copy") from error


def differences(stored: Mapping[str, Any], config: ConfigDict) -> Iterator[tuple[str, Any, Any]]:
    """(key, stored value, new value) of the keys that differ, except those that a run fills in."""
    old, new = (  # both as JSON has them, which has no tuples
        dict(values(json.loads(text)))
        for text in (json.dumps(stored, default=list), to_json(config))
    )
    for name in KEYS:
        if old.get(name) != new.get(name) and not KEYS[name].filled_in:
            yield from _changed(name, old.get(name), new.get(name))


def _changed(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    """A key that differs; for a table with the same number of items, the fields that differ."""
    fields = KEYS[name].fields
    if not fields or len(old) != len(new):
        yield name, old, new
        return
    for index, (before, now) in enumerate(zip(old, new, strict=True)):
        for field in fields:
            if before.get(field) != now.get(field):
                yield f"{name}[{index}].{field}", before.get(field), now.get(field)


def any_started(workdir: Path) -> bool:
    """Whether any stage has a checkpoint, imported ones included."""
    return bool(_started_stages(workdir))


def _started_stages(workdir: Path) -> set[str]:
    """The stages with a checkpoint, even if only a repetition has one."""
    return {parse(label).name for label in _steps(workdir)}


def _weight(difference: tuple[str, Any, Any]) -> int:
    """The order in which differences are refused: a changed family explains most others, and keys
    that may never change come before those that --allow-change allows."""
    name = difference[0]
    return 0 if name == "unified.pathway" else 1 if declared(name).resume == STRUCTURAL else 2


def _check_change(
    name: str,
    old: Any,
    new: Any,
    workdir: Path,
    stored: Mapping[str, Any],
    allow_change: bool,
) -> None:
    key = declared(name)
    if key.resume == NEUTRAL or not _started(name, workdir, stored):
        return
    switched = key.switch and bool(old) != bool(new)
    if key.resume == RECORDED and not switched:
        if allow_change:
            return
        raise ConfigError(
            f"{workdir} was started with {name}={old!r}, now it is {new!r}; add "
            "--allow-change to continue with the new value, or use the old one"
        )
    raise ConfigError(
        f"{workdir} was started with {name}={old!r}, now it is {new!r}; use the old value or "
        "another --workdir"
    )


def _started(name: str, workdir: Path, stored: Mapping[str, Any]) -> bool:
    """Whether a stage that depends on the key has a checkpoint."""
    first = name.split(".")[0]
    of_model = {stage for stage, spec in STAGES.items() if spec.part == UNIFIED.part}
    if first in STAGES:
        stages: Iterable[str] = (first,)
    elif first == "unified":
        stages = of_model
    elif name == "data.padded_vocab_size":  # matters only for weights that are trained here
        stages = (*stored["stages"], *of_model)
    else:
        stages = STAGES
    return not _started_stages(workdir).isdisjoint(stages)
