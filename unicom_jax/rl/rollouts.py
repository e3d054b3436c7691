"""Rollouts on the device: captions of pictures, and pictures of captions.

Only text passes from one to the other: `read_prompts` takes token ids and reads them in a turn of
their own, without the cache of the picture that they describe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Key

from unicom_jax.core.batch import MaskIntervals, MixedBatch
from unicom_jax.core.flow_steps import VelocityFn
from unicom_jax.core.module import Params
from unicom_jax.families.unified import DrawingContext, UnifiedModel
from unicom_jax.inference.drawing import Drawing, draw_latents
from unicom_jax.inference.engine import Models
from unicom_jax.inference.guidance import CONDITIONAL, WORDLESS
from unicom_jax.inference.text import PLAIN, Sampling, Tail, begin_writing, generate
from unicom_jax.models.transformer import KVCache
from unicom_jax.rl.rows import every_row, packed, text_rows
from unicom_jax.rl.template import Template

OF_CHANCE = 2**31 - 1  # folded into a key; no row has this number


def of_group(tree: Any, group: int) -> Any:
    """Every row `group` times, adjacent."""
    return jax.tree.map(lambda x: jnp.repeat(x, group, axis=0), tree)


def write_captions(
    model: UnifiedModel,
    params: Params,
    prepared: Any,
    rows: MixedBatch,
    template: Template,
    group: int,
    most: int,
    key: Key[Array, ""],
) -> Int[Array, "BG {most}"]:
    """`group` captions of each picture, sampled at temperature 1, of at most `most` tokens.

    A picture is read once. A caption includes the token that ended it and is padded with -1.

    Args:
      prepared, rows: as for `rows.caption_log_probs`.
    """
    count = rows.tokens.shape[0]
    cache = model.init_cache(count, template.slots + most)
    hidden, cache = model.prefill(params, rows, prepared, cache)
    last = hidden[:, template.length - 1]
    writing = begin_writing(
        jnp.repeat(last, group, axis=0),
        jax.tree.map(lambda x: jnp.repeat(x, group, axis=1), cache),
        most,
    )
    everywhere = jnp.full(count * group, template.length, jnp.int32)
    tail = Tail(
        lengths=everywhere,
        next_positions=jnp.full_like(everywhere, template.next_position),
        start=jnp.int32(template.slots),
        places=jnp.arange(count * group),
        seed=jax.random.bits(key, (), jnp.uint32),
        stop=jnp.asarray(template.stops),
    )
    numbers = Sampling(temperature=1.0).numbers
    return generate(model, params, writing, tail, jnp.int32(most), numbers, PLAIN).tokens


def words_of(
    tokens: Int[Array, "B T"], template: Template
) -> tuple[Int[Array, "B T"], Bool[Array, " B"]]:
    """The words of captions, without the tokens that end or structure a sequence; and which of the
    captions ended as a document ends."""
    known = jnp.asarray(np.union1d(template.special, template.stops))
    words, _ = packed(jnp.where(jnp.isin(tokens, known), -1, tokens))
    return words, jnp.any(tokens == template.closing, axis=1)


@flax.struct.dataclass
class Prompts:
    """B prompts that were read, each with slots for a picture after it, as `draw_latents` and
    `UnifiedModel.begin_drawing` take them.

    Attributes:
      cache: has the prompts in slots [0, start).
      positions, mask: those of the picture's slots.
      branches: number of guidance branches; those of a picture are adjacent, the conditional one
        first.
    """

    cache: KVCache
    positions: Int[Array, "B s 2"]
    mask: MaskIntervals
    start: int = flax.struct.field(pytree_node=False)
    branches: int = flax.struct.field(pytree_node=False)


def prompts_of(words: Int[Array, "B T"], template: Template) -> Int[Array, "B S"]:
    """Words in a turn of their own, up to the mark that begins the picture."""
    head, tail = (every_row(ids, len(words)) for ids in (template.head, template.tail))
    return packed(head, words, tail)[0]


def wordless(words: Int[Array, "B T"], template: Template) -> Int[Array, "B S"]:
    """The prompts of `prompts_of` without words, in the form that training uses for guidance."""
    if template.no_mean is None:
        return prompts_of(jnp.full_like(words, -1), template)
    tokens = prompts_of(words, template)
    kept = (tokens < 0) | jnp.isin(tokens, jnp.asarray(template.picture_marks))
    return jnp.where(kept, tokens, template.no_mean)


# Words to the prompts of a guidance branch.
PROMPTS = {CONDITIONAL: prompts_of, WORDLESS: wordless}


def read_prompts(
    model: UnifiedModel,
    params: Params,
    words: Int[Array, "B T"],
    template: Template,
    branches: Sequence[str] = (CONDITIONAL,),
) -> Prompts:
    """Reads words in turns of their own, each in all `branches`, keys of `PROMPTS`."""
    tokens = jnp.stack([PROMPTS[name](words, template) for name in branches], axis=1)
    tokens = tokens.reshape(-1, tokens.shape[-1])
    count, start = tokens.shape
    slots = len(template.positions)
    cache = model.init_cache(count, start + slots)
    _, cache = model.prefill(params, text_rows(tokens), None, cache)
    lengths = jnp.sum(tokens >= 0, axis=1, dtype=jnp.int32)[:, None]
    nothing = jnp.zeros((count, slots), jnp.int32)
    mask = MaskIntervals(nothing, nothing + lengths, nothing + start, nothing + start + slots)
    positions = lengths[..., None] + jnp.asarray(template.positions, jnp.int32)
    return Prompts(cache, positions, mask, start, len(branches))


def begin_drawing(
    model: UnifiedModel, params: Params, read: Prompts, grids: Int[Array, "B 2"]
) -> DrawingContext:
    """What the velocity of pictures after prompts needs, without guidance.

    `grids`: rows and columns of the latents of each picture.
    """
    every = read.branches
    positions, mask = jax.tree.map(lambda x: x[::every], (read.positions, read.mask))
    cache = jax.tree.map(lambda x: x[:, ::every], read.cache)
    return model.begin_drawing(params, cache, positions, mask, grids, read.start)


def velocity_of(model: UnifiedModel, params: Params, context: DrawingContext) -> VelocityFn:
    """(z, t) -> dz/dt in a context; t: a scalar, or one number per picture."""

    def velocity(z: jax.Array, time: jax.Array) -> jax.Array:
        times = jnp.broadcast_to(time, z.shape[:1]).astype(jnp.float32)
        return model.velocity(params, context, z, times)

    return velocity


def noise_of(
    key: Key[Array, ""], rows: int, shape: tuple[int, ...]
) -> Float32[Array, "{rows} ..."]:
    """Unit Gaussian noise; that of a row depends on its number, not on how many rows there are."""
    keys = row_keys(key, rows)
    return jax.vmap(lambda one: jax.random.normal(one, shape, jnp.float32))(keys)


def chance_of(key: Key[Array, ""], rows: int) -> Float32[Array, " {rows}"]:
    """`Samples.chance`. `key` may also be split, or folded with the numbers of rows."""
    return jax.random.uniform(jax.random.fold_in(key, OF_CHANCE), (rows,), jnp.float32)


def row_keys(key: Key[Array, ""], rows: int) -> Key[Array, " {rows}"]:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(rows))


def draw(
    model: UnifiedModel,
    params: Params,
    read: Prompts,
    grids: Int[Array, "B 2"],
    drawing: Drawing,
    key: Key[Array, ""],
) -> Float[Array, "B n d"]:
    """Latents of pictures by the sampler of inference, with the guidance of `drawing`.

    Args:
      read: prompts in `drawing.branches`.
      grids: as for `begin_drawing`.
    """
    noise = noise_of(key, len(grids), model.images.shape_of(read.positions.shape[1]))
    return draw_latents(
        model, params, read.cache, read.positions, read.mask, grids, noise, jnp.int32(read.start),
        drawing.numbers, drawing.plan,
    )  # fmt: skip


def paint(
    models: Models,
    frozen: Params,
    latents: Float[Array, "B n d"],
    grids: Int[Array, "B 2"],
    key: Key[Array, ""],
    steps: int,
) -> Float32[Array, "B N C"]:
    """Patches in [-1, 1] from latents.

    Args:
      grids: rows and columns of patches.
      steps: flow steps, for a codec that paints by a flow.
    """
    noise = None
    if channels := models.codec.noise_channels:
        patches = latents.shape[1] * models.codec.pool**2
        noise = noise_of(key, len(latents), (patches, channels))
    tokens = models.codec.decode(frozen["codec"], latents, grids, noise, steps)
    return models.space.decode(frozen, tokens, grids)
