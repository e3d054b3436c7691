"""From which models of the Hugging Face Hub the weights of a run started, as far as is known.

An address such as hf://OWNER/NAME and a folder in the Hub's cache tell it; a folder of another
name does not. `unicom import` leaves no folder in the configuration, so it keeps the names in
`WORKDIR/origins.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unicom_jax.core.paths import is_remote
from unicom_jax.families.build import autoencoder_path, family_of
from unicom_jax.interop.atomic import write_text
from unicom_jax.runs.items import CheckpointError
from unicom_jax.runs.released import given_folders
from unicom_jax.runs.stages import in_model
from unicom_jax.runs.workdir import read_json

ORIGINS = "origins.json"
# A repository that holds no model is below one of these.
ADDRESS = re.compile(r"hf://(?!(?:datasets|spaces|buckets)/)([^/@]+/[^/@]+)")
CACHED = re.compile(r"/models--([^/]+)/snapshots/")


def hub_id(place: str) -> str | None:
    """OWNER/NAME of a model on the Hub, from a folder or an address of it; None: it is unknown."""
    if found := ADDRESS.match(place):
        return found[1]
    if is_remote(place):
        return None
    found = CACHED.search(f"{Path(place).expanduser().resolve().as_posix()}/")
    return found[1].replace("--", "/") if found else None


def keep_origins(workdir: Path, places: Mapping[str, str]) -> None:
    """Records the models of the Hub among `places`, folders by configuration key. What was known of
    these keys before is forgotten."""
    path = workdir / ORIGINS
    before = _kept(path)
    others = {key: name for key, name in before.items() if key not in places}
    found = {key: name for key, place in places.items() if (name := hub_id(place))}
    if before != (now := {**others, **found}):
        write_text(path, json.dumps(now, indent=2) + "\n")


def origins_of(workdir: Path, config: Mapping[str, Any]) -> list[str]:
    """The models of the Hub from which the model of a run started, each once."""
    used = (*in_model(config).values(), *family_of(config).starts_from(config).values())
    parts = dict.fromkeys(subtree.part for subtree in used)
    given = [place for part in parts for place in given_folders(config, part).values()]
    known = (hub_id(place) for place in (*given, autoencoder_path(config)))
    kept = (name for key, name in _kept(workdir / ORIGINS).items() if _part(key) in parts)
    return _each_once((*known, *kept))


def _part(key: str) -> str:
    return key.partition(".")[0]


def _kept(path: Path) -> dict[str, str]:
    return read_json(path, CheckpointError) if path.is_file() else {}


def _each_once(names: Iterable[str | None]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name]
