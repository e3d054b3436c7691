"""The share of visible pairs in a stage's packed rows: counted on its own data if these can be
read, else on stand-in data, packed by the same tasks and the same policy.

The stand-in is the embedded Scenes. Drawn in the sizes of the configuration's pictures, they take
as many slots as any others would; their texts are short, so text-heavy documents come out too
short.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from data_pipelines.batches import row_facts
from data_pipelines.build import (
    SOURCE_KEYS,
    grid_unit,
    image_policy,
    load_or_train_tokenizer,
)
from data_pipelines.loading.loader import LoaderError
from data_pipelines.sources.configured import part_weights
from unicom_jax.core.attention import visible_share
from unicom_jax.core.attention.blocks import block_states, fitting_block
from unicom_jax.core.attention.kernel_parts import filled_mask
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.paths import as_path
from unicom_jax.runs.loading import stage_loader
from unicom_jax.runs.stages import data_seed, with_seed_of

ROWS = 32  # least number of rows that are counted
STAND_INS = {"document": "interleaved"}  # replacements for tasks that Scenes cannot serve
EXAMPLES = 300  # examples on which the tokenizer of a stand-in is trained
UNREADABLE = (OSError, ValueError, ImportError, LoaderError)


@dataclasses.dataclass(frozen=True)
class Visible:
    """Attributes:
    share: share of the pairs of a row's slots that the mask shows.
    blocks: share of a kernel's blocks ("fused" attention) that have such a pair; the kernel skips
      the others.
    rows: what was counted, in words.
    """

    share: float
    blocks: float
    rows: str


_COUNTED: dict[str, Visible] = {}  # packing takes seconds, and a search tries many meshes


def visible_pairs(config: ConfigDict, stage: str) -> Visible:
    """The visible pairs of a unified stage's rows, as a run with these data would pack them."""
    few = config.copy_and_resolve_references()
    few.mesh, few[stage].accumulate = "", 1
    window = few[stage].window_rows
    few[stage].batch_size = window * -(-ROWS // window)
    few.data.update({"workers": 0, "threads": 1, "prefetch": 1})
    facts = row_facts(with_seed_of(few, stage), stage, seed=data_seed(few, stage))
    key = json.dumps([stage, facts, few.data.to_dict()], default=list)
    if key not in _COUNTED:
        _COUNTED[key] = _count(few, stage)
    return _COUNTED[key]


def _count(config: ConfigDict, stage: str) -> Visible:
    rows = config[stage].batch_size
    try:
        return Visible(*_shares(pack(config, stage)), f"{rows} packed rows of its data")
    except UNREADABLE as error:
        reason = str(error).partition("\n")[0]
    with contextlib.suppress(*UNREADABLE):
        shares = _shares(pack(stand_in(config, stage), stage))
        return Visible(*shares, f"{rows} packed rows of Scenes in place of its data ({reason})")
    return Visible(1.0, 1.0, f"all pairs count, as no rows can be packed: {reason}")


def pack(config: ConfigDict, stage: str) -> MaskIntervals:
    """The mask of a stage's first batch.

    Raises:
      ValueError, OSError, ...: those that a run would raise.
    """
    loader = stage_loader(config, stage, load_or_train_tokenizer(config, None))
    try:
        return next(loader).mask
    finally:
        loader.close()


def stand_in(config: ConfigDict, stage: str) -> ConfigDict:
    """The same configuration with Scenes as its data, which are always available."""
    config, policy = config.copy_and_resolve_references(), image_policy(config)
    config.data.packed = config.data.tokenizer_fingerprint = ""
    if not as_path(config.data.tokenizer).is_dir():
        config.data.tokenizer = ""
    shares: Counter = Counter()
    for (_, task), weight in part_weights(config, stage).items():
        shares[STAND_INS.get(task, task)] += weight
    config[stage].mixture.update({task: shares[task] for task in config[stage].mixture})
    config.data.sources = ()
    unset = {key: value for key, (_, value) in SOURCE_KEYS.items()}
    config.data.source.update({**unset, "kind": "scenes", "size": EXAMPLES})
    config[stage].window_documents = 0
    if buckets := policy.buckets(config.data.patch * grid_unit(config)):
        config.data.scenes.sizes = buckets
    config[stage].overlong = "skip"
    return config


def _shares(mask: MaskIntervals) -> tuple[float, float]:
    """The visible shares of pairs and of a kernel's blocks."""

    def both(mask: MaskIntervals) -> tuple[jax.Array, jax.Array]:
        slots = mask.context_start.shape[1]
        size = fitting_block(slots)
        filled = -(-slots // size) * size
        states = block_states(filled_mask(mask, filled), filled, size, size)
        return visible_share(mask, slots), jnp.mean(states > 0)

    pairs, blocks = jax.jit(both)(mask)
    return float(pairs), float(blocks)
