"""What the cache must equal: the whole sequence run anew, written without any of its code."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.sequences.document import Document, drawing_slots
from data_pipelines.sequences.packing import PackingConfig, pack_rows
from unicom_jax.core.batch import MixedBatch, Role
from unicom_jax.families.images import Noised
from unicom_jax.families.slots import place_images
from unicom_jax.inference.generator import Generator


def rows_of(generator: Generator, documents: Sequence[Document], room: int) -> MixedBatch:
    """One prefix a row, with at least `room` empty slots and a place for an image behind each."""
    slots = max(map(len, documents)) + room
    images = 1 + max(len(document.grids) for document in documents)
    packing = PackingConfig(slots=slots, images=images, draws=1)
    return pack_rows([[one] for one in documents], packing, generator.sequence)


def hidden_states(
    generator: Generator, params, batch: MixedBatch, noisy: jax.Array, time: jax.Array
) -> jax.Array:
    """Hidden states (B, S, W); NOISY slots hold `noisy` (B, n, d) at `time` (a scalar)."""
    pathway = generator.models.unified
    unified, images = params["unified"], pathway.images
    prepared = images.prepare({"encoder": params["vision"], "codec": params["codec"]}, batch)
    grids = batch.grids[:, -1:] // generator.sequence.pool
    noised = Noised(noisy[:, None], jnp.full((len(noisy), 1), time), grids)
    drawn, _ = images.drawn(unified, noised)
    text = pathway.transformer.embed(unified["transformer"], batch.tokens)
    hidden = place_images(text, batch, *images.looked_at(unified, prepared), drawn)
    return pathway.transformer(unified["transformer"], hidden, batch.positions, batch.mask)[0]


def write(generator: Generator, documents: Sequence[Document], count: int) -> np.ndarray:
    """The likeliest `count` tokens behind each prefix: (B, count), a full pass for each."""
    batch = rows_of(generator, documents, count)
    pathway = generator.models.unified

    @jax.jit
    def scores(params, batch):
        nothing = jnp.zeros((len(documents), 1, generator.models.codec.latent_dim))
        hidden = hidden_states(generator, params, batch, nothing, jnp.ones(()))
        return pathway.logits(params["unified"], hidden)

    written = np.zeros((len(documents), count), np.int32)
    for step in range(count):
        logits = np.asarray(scores(generator.params, batch))
        for row, document in enumerate(documents):
            slot = len(document) + step
            token = written[row, step] = logits[row, slot - 1].argmax()
            batch.tokens[row, slot], batch.roles[row, slot] = token, Role.TEXT
            batch.positions[row, slot] = document.next_position + step
            batch.mask.context_stop[row, slot] = slot + 1
    return written


def velocity(generator: Generator, documents: Sequence[Document], rows: int, cols: int):
    """(noisy (B, n, d), scalar time) -> velocity (B, n, d) of an image right behind each prefix."""
    count, pathway = rows * cols, generator.models.unified
    batch = rows_of(generator, documents, count)
    first = np.array([len(document) for document in documents])
    places = first[:, None] + np.arange(count)
    for row, document in enumerate(documents):
        here = slice(first[row], first[row] + count)
        slots = drawing_slots(len(document), document.next_position, rows, cols)
        batch.roles[row, here] = Role.NOISY
        batch.positions[row, here] = slots.positions
        batch.image_token[row, here] = np.arange(count)
        batch.image_index[row, here] = 0  # the row's only draw
        batch.grids[row, -1] = rows, cols
        for name in ("context_start", "context_stop", "span_start", "span_stop"):
            getattr(batch.mask, name)[row, here] = getattr(slots.mask, name)

    batch = jax.tree.map(jnp.asarray, batch)

    def run(noisy: jax.Array, time: jax.Array) -> jax.Array:
        hidden = hidden_states(generator, generator.params, batch, noisy, time)
        at_image = jnp.take_along_axis(hidden, places[..., None], axis=1)
        return pathway.images.head(
            generator.params["unified"]["head"], at_image, jnp.full(at_image.shape[:2], time)
        )

    return run
