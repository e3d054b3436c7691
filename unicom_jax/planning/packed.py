"""How much of a row's attention the packed rows of a stage show: of its own data where they can be
read, else of a stand-in's, packed by the same tasks and the same policy.

The stand-in is the embedded Scenes. Drawn in the sizes of the configuration's pictures they take as
many slots as any others would; their words are few, so documents of much text are too short.
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
from unicom_jax.runs.stages import data_seed

ROWS = 32  # that are looked at, at least
STAND_INS = {"document": "interleaved"}  # tasks that Scenes cannot serve
EXAMPLES = 300  # whose words the tokenizer of a stand-in learns
UNREADABLE = (OSError, ValueError, ImportError, LoaderError)


@dataclasses.dataclass(frozen=True)
class Visible:
    """Attributes:
    share: of the pairs of a row's slots, those that the mask shows.
    blocks: of the blocks that a kernel works through ("fused" attention), those with such a pair;
      it leaves out the others.
    rows: what that was counted on, in words.
    """

    share: float
    blocks: float
    rows: str


_COUNTED: dict[str, Visible] = {}  # packing takes seconds, and a search asks for many meshes


def visible_pairs(config: ConfigDict, stage: str) -> Visible:
    """Of the rows of a stage of the unified model, as a run with these data would pack them."""
    few = config.copy_and_resolve_references()
    few.mesh, few[stage].accumulate = "", 1
    window = few[stage].window_rows
    few[stage].batch_size = window * -(-ROWS // window)
    few.data.update({"workers": 0, "threads": 1, "prefetch": 1})
    facts = row_facts(few, stage, seed=data_seed(few, stage))
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
      ValueError, OSError, ...: as a run would.
    """
    loader = stage_loader(config, stage, load_or_train_tokenizer(config, None))
    try:
        return next(loader).mask
    finally:
        loader.close()


def stand_in(config: ConfigDict, stage: str) -> ConfigDict:
    """The same configuration with Scenes as its data, which need nothing that is not here."""
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
    """Of pairs, and of a kernel's blocks."""

    def both(mask: MaskIntervals) -> tuple[jax.Array, jax.Array]:
        slots = mask.context_start.shape[1]
        size = fitting_block(slots)
        filled = -(-slots // size) * size
        states = block_states(filled_mask(mask, filled), filled, size, size)
        return visible_share(mask, slots), jnp.mean(states > 0)

    pairs, blocks = jax.jit(both)(mask)
    return float(pairs), float(blocks)
