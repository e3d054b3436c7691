"""What a stage's result depends on, as a hash: stages of equal addresses are the same stage.

An address covers the configuration keys that the stage reads, and the addresses of the stages whose
weights it starts from or reads. Which keys those are is declared with the registry of stages
(`Part.reads`) and not measured: rather too many than too few. Files count by their path: a sweep
does not notice that other data were put there, unless `data.fingerprint` says which are meant. The
version of the code does not count either; the results name it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from unicom_jax.config import KEYS, values
from unicom_jax.config.key import ALWAYS
from unicom_jax.config.keys.training import TRAINING
from unicom_jax.runs.stages import PARTS, STAGES, Occurrence, occurrences, seed_of

Config = Mapping[str, Any]
# Where and how fast something is computed, reported or kept; no result depends on it.
FREE = frozenset(
    ("stages", "mesh", "xla_flags", "wandb_project")
    + tuple(f"data.{name}" for name in ("cache_mb", "threads", "prefetch", "workers"))
)
FREE_OF_STAGES = frozenset(
    ("offload_optimizer", "save_every", "keep", "keep_every", "profile_start", "profile_steps")
)
WATCHED = ("sample", "evaluation")  # groups that a stage reads which is sampled while it trains
LENGTH = 10  # hexadecimal digits of an address


def is_free(name: str) -> bool:
    """Whether no result depends on a key."""
    first, _, rest = name.partition(".")
    return name in FREE or (first in STAGES and rest in FREE_OF_STAGES)


def parents(config: Config, stage: Occurrence) -> list[Occurrence]:
    """The stages of `config.stages` whose weights a stage starts from or reads, in their order."""
    order = occurrences(config["stages"])
    earlier = order[: order.index(stage)]

    def last(part: str) -> Occurrence | None:
        return next((one for one in reversed(earlier) if one.spec.part == part), None)

    spec = stage.spec
    before = last(spec.part)
    parts = [subtree.part for subtree in spec.reads(config).values()]
    if before is None:
        parts += [subtree.part for subtree in spec.begins_with(config).values()]
    found = {before, *map(last, parts)} - {None}
    return [one for one in earlier if one in found]


def ancestors(config: Config, stage: Occurrence) -> list[Occurrence]:
    """A stage's parents, their parents and so on, in the order of `config.stages`."""
    found: set[Occurrence] = set()
    left = parents(config, stage)
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left += parents(config, one)
    return [one for one in occurrences(config["stages"]) if one in found]


def keys_read(config: Config, stage: Occurrence) -> list[str]:
    """The configuration keys on which the weights and metrics of a stage depend, given those of its
    parents."""
    part = PARTS[stage.spec.part]
    groups = None if part.reads is None else (stage.spec.part, *part.reads)
    samples = stage.spec.samples or config[stage.name].get("sample_every", 0) > 0
    lengths = _reads_lengths(config)

    def reads(name: str) -> bool:
        first, _, rest = name.partition(".")
        if first == stage.name:
            return True
        if first in WATCHED:
            return samples
        if first in STAGES and lengths and rest in ("sequence_length", "mixture.text"):
            return True
        if first in STAGES and (rest in TRAINING or first not in PARTS):
            return False  # how other stages are trained is in their own addresses
        if not rest or first == "data":
            return True
        return groups is None or any(name == one or name.startswith(f"{one}.") for one in groups)

    return [name for name in KEYS if not is_free(name) and reads(name)]


def _reads_lengths(config: Config) -> bool:
    """Whether texts are cut into pieces of the length of the shortest rows of any stage."""
    data = config["data"]
    sources = data["sources"] or (data["source"],)
    return any(one["kind"] == "text" and not one["piece"] for one in sources)


def addresses(config: Config, *, seed: bool = True) -> dict[Occurrence, str]:
    """The address of each stage of `config.stages`.

    Args:
      seed: False: the same for all seeds, for what stages of equal work cost. True: the seed that
        counts is the stage's, whether its own or the run's.
    """
    given, found = dict(values(config)), {}
    for stage in occurrences(config["stages"]):
        given["seed"] = seed_of(config, stage.label) if seed else None
        about = {
            "stage": stage.label,
            "keys": {
                name: given[name]
                for name in keys_read(config, stage)
                if name != f"{stage.name}.seed" and not _as_before(name, given[name])
            },
            "parents": [found[one] for one in parents(config, stage)],
        }
        if _reads_lengths(config):
            about["stages"] = list(config["stages"])
        found[stage] = digest(about)
    return found


def _as_before(name: str, value: Any) -> bool:
    """Whether a key that came later has the value that stands for what runs did without it: it is
    left out, so that a sweep keeps its addresses when a version adds keys."""
    before = KEYS[name].before
    return before is not ALWAYS and value == before


def digest(about: Any) -> str:
    """A hash of what JSON can hold; tuples count as lists, dicts in the order of their keys."""
    text = json.dumps(about, default=_plain, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) or hasattr(value, "items") else list(value)


def digest_of(config: Config, groups: Iterable[str]) -> str:
    """A hash of some groups of a configuration."""
    return digest({name: value for name, value in values(config) if name.split(".")[0] in groups})
