"""From pictures to sequence slots and back: places vectors, gathers hidden states.

Both directions are gathers along a row (`take_along_axis`), so devices that hold other rows have
nothing to exchange. Image models compute picture by picture (`each_alone`); otherwise all devices
along `context`, which share rows, would compute all of those rows' pictures.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from unicom_jax.core.activations import PICTURES, ROWS, SLOTS, place
from unicom_jax.core.batch import MixedBatch, Role


def picture_rows(pictures: Shaped[Array, "B M ..."]) -> Shaped[Array, "BM ..."]:
    """One picture or draw per row, (B M, ...), for models that know only pictures."""
    return place(pictures.reshape(-1, *pictures.shape[2:]), PICTURES)


def each_alone(pictures: Any) -> Any:
    """Turns arrays (B, M, ...) of pictures or draws into (B M, 1, ...): each is a row of its own,
    on one device."""
    return jax.tree.map(lambda x: place(x.reshape(-1, 1, *x.shape[2:]), PICTURES), pictures)


def side_by_side(pictures: Shaped[Array, "BM 1 ..."], rows: int) -> Shaped[Array, "{rows} M ..."]:
    """The inverse: joins the pictures of a row, since any of its slots may need any of them."""
    own = place(pictures, PICTURES)  # places their gradients too
    return place(own, ROWS).reshape(rows, -1, *pictures.shape[2:])


def used_first(
    used: Bool[Array, "B M"], count: int
) -> tuple[Int[Array, "B count"], Int[Array, "B M"]]:
    """(chosen, back): `count` columns of each row, the `used` ones first (0: all columns), and for
    each used column its index in `chosen`."""
    columns = used.shape[1]
    if not 0 < count < columns:
        all_columns = jnp.broadcast_to(jnp.arange(columns), used.shape)
        return all_columns, all_columns
    chosen = jnp.argsort(~used, axis=1, stable=True)[:, :count]
    return chosen, jnp.clip(jnp.cumsum(used, axis=1) - 1, 0, count - 1)


def take(pictures: Shaped[Array, "B M ..."], index: Int[Array, "B N"]) -> Shaped[Array, "B N ..."]:
    """The pictures `index` of each row."""
    index = index.reshape(index.shape + (1,) * (pictures.ndim - 2))
    return jnp.take_along_axis(pictures, index, axis=1)


def place_images(
    text: Float[Array, "B S W"],
    batch: MixedBatch,
    understood: Float[Array, "B M p W"],
    clean: Float[Array, "B M q W"],
    drawn: Float[Array, "B draws s W"] | None = None,
) -> Float[Array, "B S W"]:
    """`text`, with the vectors of pictures at the slots of their roles.

    Slot (image i, token j) takes vector [i, j] of its role's array. A batch without draws needs no
    `drawn`.
    """
    arrays = {Role.UNDERSTAND: understood, Role.CLEAN: clean}
    if drawn is not None:
        arrays[Role.NOISY] = drawn
    rows, width = text.shape[0], text.shape[-1]
    index, first = jnp.zeros_like(batch.roles), 0
    for role, array in arrays.items():
        here = first + batch.image_index * array.shape[2] + batch.image_token
        index = jnp.where(batch.roles == role, here, index)
        first += array.shape[1] * array.shape[2]
    flat = [array.reshape(rows, -1, width).astype(text.dtype) for array in arrays.values()]
    vectors = place(jnp.concatenate(flat, axis=1), ROWS)
    index = place(index, ROWS, SLOTS)
    pictured = jnp.take_along_axis(vectors, index[..., None], axis=1)
    return jnp.where((batch.roles > Role.TEXT)[..., None], pictured, text)


def pick_draws(
    hidden: Float[Array, "B S W"], batch: MixedBatch, slots: int
) -> Float[Array, "B draws {slots} W"]:
    """The hidden states at the NOISY slots of each draw, which are adjacent.

    Entries after a draw's last slot are those that follow in the row; an absent draw has arbitrary
    ones.
    """
    return pick(hidden, jnp.argmax(_draw_starts(batch), axis=-1), slots)


def pick_contexts(
    hidden: Float[Array, "B S W"], batch: MixedBatch, slots: int
) -> tuple[Float[Array, "B draws T W"], Int[Array, "B draws"]]:
    """The hidden states of all slots that precede the place of each draw, and how many they are.

    Later entries are arbitrary; an absent draw has none. A draw takes `slots` slots of its row, so
    T is less than S by these.
    """
    starts = _draw_starts(batch)
    first = jnp.argmax(starts, axis=-1)
    begin, stop = (
        jnp.take_along_axis(bound, first, axis=1)
        for bound in (batch.mask.context_start, batch.mask.context_stop)
    )
    lengths = jnp.where(jnp.any(starts, axis=-1), stop - begin, 0)
    return pick(hidden, begin, hidden.shape[1] - slots), lengths


def pick_read(
    hidden: Float[Array, "B S W"], batch: MixedBatch, slots: int
) -> Float[Array, "B M {slots} W"]:
    """Like `pick_draws`, for the pictures that are read."""
    return pick(hidden, jnp.argmax(_read_starts(batch), axis=-1), slots)


def pictures_read(batch: MixedBatch) -> Bool[Array, "B M"]:
    """Which pictures are themselves in the sequence, not only as noisy copies."""
    return jnp.any(_read_starts(batch), axis=-1)


def dummy_draws(batch: MixedBatch) -> Bool[Array, "B draws"]:
    """The draws that are only slots before a text (`SequenceConfig.dummies`): unlike the slots of a
    drawn picture, theirs have no span."""
    alone = batch.mask.span_start == batch.mask.span_stop
    noisy = alone & (batch.roles == Role.NOISY)
    return jnp.any(_first_slots(batch, noisy, batch.draws.shape[1]), axis=-1)


def _read_starts(batch: MixedBatch) -> Bool[Array, "B M S"]:
    """True at the first slot of each picture that is read."""
    read = (batch.roles == Role.UNDERSTAND) | (batch.roles == Role.CLEAN)
    return _first_slots(batch, read, batch.grids.shape[1])


def _first_slots(
    batch: MixedBatch, chosen: Bool[Array, "B S"], count: int
) -> Bool[Array, "B {count} S"]:
    """True at the `chosen` slot where each of `count` pictures or draws begins."""
    begins = chosen & (batch.image_token == 0)
    return begins[:, None] & (batch.image_index[:, None] == jnp.arange(count)[:, None])


def pick(
    hidden: Float[Array, "B S W"], first: Int[Array, "B M"], slots: int
) -> Float[Array, "B M {slots} W"]:
    """The hidden states of the `slots` slots that start at `first`."""
    index = jnp.minimum(first[..., None] + jnp.arange(slots), hidden.shape[1] - 1)
    flat = index.reshape(len(hidden), -1, 1)
    return jnp.take_along_axis(hidden, flat, axis=1).reshape(*index.shape, hidden.shape[-1])


def draw_parts(batch: MixedBatch) -> Int[Array, "B draws"]:
    """The part of the mixture that each draw's slots belong to; -1: no draw."""
    return _part_at(_draw_starts(batch), batch)


def read_parts(batch: MixedBatch) -> Int[Array, "B M"]:
    """Like `draw_parts`, for the pictures that are read; -1: not read."""
    return _part_at(_read_starts(batch), batch)


def _part_at(starts: Bool[Array, "B starts S"], batch: MixedBatch) -> Int[Array, "B starts"]:
    return jnp.max(jnp.where(starts, batch.parts[:, None], -1), axis=-1)


def _draw_starts(batch: MixedBatch) -> Bool[Array, "B draws S"]:
    """True at the first slot of each draw."""
    return _first_slots(batch, batch.roles == Role.NOISY, batch.draws.shape[1])
