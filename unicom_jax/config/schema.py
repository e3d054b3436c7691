"""The declaration of a whole configuration: defaults, types, ranges, meanings, rules on resume.

Defaults, validation, hints, `unicom config explain`, docs/keys.md and what a run may change when it
resumes are all read from `KEYS`. A key that is not declared does not exist.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from unicom_jax.config.key import ALWAYS, NEUTRAL, RECORDED, ConfigError, Group, Key, flatten
from unicom_jax.config.keys.autoencoder import AUTOENCODER
from unicom_jax.config.keys.codec import CODEC
from unicom_jax.config.keys.data import DATA
from unicom_jax.config.keys.encoder import ENCODER
from unicom_jax.config.keys.policy import CAPTIONER, DRAWER, JOINT
from unicom_jax.config.keys.training import (
    LONG_CAPTIONS,
    REDRAWING,
    TRAINING,
    UNIFIED_STAGE,
)
from unicom_jax.config.keys.unified import UNIFIED
from unicom_jax.config.keys.use import EVALUATION, SAMPLE

# The settings of every stage; what a stage trains, and how, its row in `runs/stages.py` says.
STAGES: dict[str, Group] = {
    "encoder": ENCODER,
    "autoencoder": AUTOENCODER,
    "codec": CODEC,
    **{
        stage: Group(f"The stage {stage} of the unified model.", UNIFIED_STAGE)
        for stage in ("align", "pretrain", "continue", "sft")
    },
    "longcap": LONG_CAPTIONS,
    "reca": REDRAWING,
    "g4u": CAPTIONER,
    "u4g": DRAWER,
    "jointly": JOINT,
}
POLICY_STAGES = tuple(name for name, group in STAGES.items() if "rewards" in group.keys)
UNIFIED_STAGES = tuple(name for name, group in STAGES.items() if group.keys is UNIFIED_STAGE)
ROW_STAGES = tuple(name for name, group in STAGES.items() if "mixture" in group.keys)

DECLARED: dict[str, Key | Group] = {
    "seed": Key(
        0, "Seed of all random numbers; a stage may have its own.", least=0, most=2**31 - 1
    ),
    "stages": Key(
        ("encoder", "codec", "pretrain"),
        "The stages that are trained, in this order; a stage may be listed several times.",
        choices=STAGES,
        resume=NEUTRAL,
    ),
    "stage_seeds": Key(
        True,
        "Give each stage, and each repetition of it, its own order of data and its own noise; "
        "False: all share those of `seed`, as in older runs.",
        before=False,
    ),
    "mesh": Key(
        "fsdp=-1",
        "Sizes of slice, data, fsdp, context and tensor, -1 for all remaining devices; "
        "auto: the accelerator's preset. See docs/meshes.md.",
        resume=NEUTRAL,
    ),
    "compute_dtype": Key(
        "float32",
        "Type of matrix products; norms, the compressor, time embeddings, modulation, logits and "
        "losses stay float32.",
        choices=("float32", "bfloat16"),
        resume=RECORDED,
    ),
    "gradient_dtype": Key(
        "compute",
        "Type in which weight gradients are computed and summed over devices; compute: that of "
        "compute_dtype.",
        choices=("compute", "float32"),
        resume=RECORDED,
        before="compute",
    ),
    "xla_flags": Key(
        "auto",
        "auto: XLA's flags for the accelerator that is here, see docs/meshes.md; off: none.",
        choices=("auto", "off"),
        resume=NEUTRAL,
        before="auto",
    ),
    "wandb_project": Key(
        "", 'Weights & Biases project to which metrics are also sent; "": none.', resume=NEUTRAL
    ),
    "data": DATA,
    **STAGES,
    "unified": UNIFIED,
    "sample": SAMPLE,
    "evaluation": EVALUATION,
}
KEYS = flatten(DECLARED)
TABLES = tuple(name for name, key in KEYS.items() if key.fields)
FIELD = re.compile(r"(?P<table>[\w.]+?)(\[(?P<index>\d+)\])?\.(?P<field>\w+)")
GROUPS = {
    name for key in KEYS for name in itertools.accumulate(key.split(".")[:-1], "{}.{}".format)
}


def defaults(declared: Mapping[str, Key | Group] = DECLARED) -> ConfigDict:
    """A configuration of all defaults. It is locked: a key that is not declared cannot be set."""
    config = ConfigDict(
        {
            name: defaults(entry.keys) if isinstance(entry, Group) else copy.copy(entry.default)
            for name, entry in declared.items()
        }
    )
    return config.lock()


def stage_defaults(stage: str, **changes: Any) -> ConfigDict:
    """The keys of training of one stage alone, with `changes`."""
    declared = UNIFIED_STAGE if stage in UNIFIED_STAGES else TRAINING
    config = defaults(declared)
    config.update(changes)
    return config


def values(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of everything in a configuration; a declared dict is one value."""
    for name, value in config.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping | ConfigDict) and key not in KEYS:
            yield from values(value, f"{key}.")
        else:
            yield key, value


def complete(stored: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration with the keys that came after it, set to what it did without them.

    Raises:
      ConfigError: it has a value in place of a group.
    """
    completed = copy.deepcopy(dict(stored))
    for name in sorted(GROUPS):
        found: Any = completed
        for part in name.split("."):
            found = found.get(part, {})
            if not isinstance(found, Mapping):
                raise ConfigError(f"{name} is {found!r} where a group of keys is expected")
    for stage in STAGES.keys() - stored.keys():  # it came later, and was not trained
        completed[stage] = defaults(STAGES[stage].keys).to_dict()
    for name, key in KEYS.items():
        if key.before is ALWAYS:
            continue
        *groups, last = name.split(".")
        place = completed
        for group in groups:
            place = place.setdefault(group, {})
        place.setdefault(last, copy.copy(key.before))
    for name in TABLES:
        for table in value_at(completed, name):
            for field, key in KEYS[name].fields.items():
                before = key.default if key.before is ALWAYS else key.before
                table.setdefault(field, copy.copy(before))
    return completed


def value_at(config: Mapping[str, Any], name: str) -> Any:
    """The value of a dotted name."""
    for part in name.split("."):
        config = config[part]
    return config


def declared(name: str) -> Key | None:
    """The declaration of a key or of a field of a table, such as data.sources[0].path; None: there
    is none. The number may be left out."""
    if name in KEYS:
        return KEYS[name]
    match = FIELD.fullmatch(name)
    table = KEYS.get(match["table"]) if match else None
    return table.fields.get(match["field"]) if table and table.fields else None


def group_of(name: str) -> Group | None:
    """The group of a dotted name; None where there is none."""
    found: Any = Group("", DECLARED)
    for part in name.split("."):
        found = found.keys.get(part) if isinstance(found, Group) else None
    return found if isinstance(found, Group) else None
