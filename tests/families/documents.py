"""Small documents of every kind as batches, with features, latents and noise by (document, image).

One picture is 32 pixels, four tokens. Features and latents are random numbers that belong to an
image, wherever packing puts it, so that a packed batch can be compared with an unpacked one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.build import sequence_config
from data_pipelines.segments import DRAWN, SOURCE, UNDERSTOOD, Image, Segment, Text
from data_pipelines.sequences.document import Document
from data_pipelines.sequences.format import SequenceConfig
from data_pipelines.sequences.packing import PackingConfig, pack_rows
from data_pipelines.sequences.sequence import build_document
from tests.data.samples import picture, tokenizer
from tests.tiny import tiny_config
from unicom_jax.core.batch import MixedBatch
from unicom_jax.core.module import Module, Params
from unicom_jax.families import images
from unicom_jax.families.build import build_unified
from unicom_jax.families.latents import LatentImages, Prepared
from unicom_jax.families.unified import UnifiedModel

TOKENS, FEATURES, LATENTS = 4, 32, 8  # of an image of the tiny configuration


def image(seed: int, role: str) -> Image:
    return Image(picture(seed, 32, 32), role)


def words(text: str) -> Text:
    return Text(text, supervised=True)


TEXT = [words("a red dot")]
DRAW = [Text("a red dot"), image(1, DRAWN)]
LOOK = [image(2, UNDERSTOOD), Text("how many dots?"), words("one")]
EDIT = [image(3, SOURCE), Text("paint it green"), image(4, DRAWN)]
TALK = [Text("a blue square"), image(5, DRAWN), Text("how many?"), words("one")]
ALL: tuple[list[Segment], ...] = (TEXT, DRAW, LOOK, EDIT, TALK)
PACKED = [list(range(len(ALL)))]
UNPACKED = [[index] for index in range(len(ALL))]


def make_model(**overrides) -> tuple[Module, SequenceConfig]:
    """The tiny unified model and the sequence format that goes with it."""
    config = tiny_config(**overrides)
    return build_unified(config), sequence_config(config)


def lively(module: Module, seed: int = 0, scale: float = 0.15) -> Params:
    """Weights without the zeros that a fresh model starts with, so that everything has an effect.

    Drawn by NumPy leaf by leaf: nothing is compiled. A larger `scale` of the matrices makes the
    outputs depend more on every input.
    """
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        noise = rng.standard_normal(leaf.shape).astype(np.float32)
        return jnp.asarray(scale * noise if leaf.ndim > 1 else 1.0 + 0.2 * noise)

    return jax.tree.map(draw, module.abstract())


def documents(segments: Sequence[Sequence[Segment]], sequence: SequenceConfig) -> list[Document]:
    return [build_document(each, tokenizer(), sequence) for each in segments]


def pack(
    made: Sequence[Document], rows: Sequence[Sequence[int]], sequence: SequenceConfig
) -> MixedBatch:
    """A batch whose row r holds the documents `rows[r]`; rows are as long as the longest."""
    slots = max(sum(len(made[i]) for i in row) for row in rows)
    images = max(1, *(sum(len(made[i].grids) for i in row) for row in rows))
    config = PackingConfig(slots=slots, images=images)
    return pack_rows([[made[i] for i in row] for row in rows], config, sequence)


def arrays(
    made: Sequence[Document], rows: Sequence[Sequence[int]], kind: str, seed: int = 0
) -> np.ndarray:
    """Random numbers of the images or draws of `pack(made, rows)`.

    kind: of images "features" (B, M, N, F) or "latents" (B, M, N, d), of draws "noise" (B, D, N, d)
    or "time" (B, D) in [0, 1).
    """
    shape = {
        "features": (TOKENS, FEATURES),
        "latents": (TOKENS, LATENTS),
        "noise": (TOKENS, LATENTS),
        "time": (),
    }[kind]
    held = "draws" if kind in ("noise", "time") else "grids"
    places = [[(i, m) for i in row for m in range(len(getattr(made[i], held)))] for row in rows]
    most = max(1, *(sum(len(made[i].grids) for i in row) for row in rows))  # as in `pack`
    out = np.zeros((len(rows), most, *shape), np.float32)
    salt = ("features", "latents", "noise", "time").index(kind)
    for row, row_places in enumerate(places):
        for column, (document, picture_index) in enumerate(row_places):
            rng = np.random.default_rng([seed, salt, document, picture_index])
            draw = rng.random if kind == "time" else rng.standard_normal
            out[row, column] = draw(shape)
    return out


def inputs(
    made: Sequence[Document],
    rows: Sequence[Sequence[int]],
    sequence: SequenceConfig,
    noise_seed: int = 0,
) -> tuple[MixedBatch, Prepared, tuple[np.ndarray, np.ndarray]]:
    """(batch, prepared, (time, noise)): what `loss_terms` takes behind the weights, where
    `give_noise` has (time, noise) in the place of random keys."""
    draws = (arrays(made, rows, kind, noise_seed) for kind in ("time", "noise"))
    looks = (arrays(made, rows, kind) for kind in ("features", "latents"))
    batch = pack(made, rows, sequence)
    return batch, Prepared(*looks, batch.grids, batch.grids), tuple(draws)


def cut(batch: MixedBatch, start: int, stop: int) -> MixedBatch:
    """The slots [start, stop) of every row; masks keep speaking of the whole row's slots."""
    names = ("tokens", "positions", "mask", "roles", "image_index", "image_token")
    names += ("targets", "target_weights", "parts")
    slots = {name: jax.tree.map(lambda x: x[:, start:stop], getattr(batch, name)) for name in names}
    return batch.replace(**slots)


def give_noise(patch: pytest.MonkeyPatch) -> None:
    """`loss_terms` takes (time, noise) where random keys belong, and draws no noise of its own.

    What is no key is refused by the check of shapes, so the calls that pass it on go without.
    """
    patch.setattr(images, "draw_noise", lambda shape, draws, kind, shifts: draws)
    for function in (images.noise_draws, LatentImages.noise, UnifiedModel.loss_terms):
        patch.setattr(function, "__no_type_check__", True, raising=False)


# (weights, *inputs) -> ((weighted loss, terms), gradient)
Losses = Callable[..., tuple[tuple[jax.Array, dict], Params]]


def packing_changes_nothing(
    losses: Losses, params: Params, sequence: SequenceConfig, atol: float, floor: float = 0.0
) -> Params:
    """Compares all documents in one row with one a row; returns the gradient.

    Gradients may differ by `atol` times a leaf's largest one, plus `floor`.
    """
    made = documents(ALL, sequence)
    (_, packed), packed_gradient = losses(params, *inputs(made, PACKED, sequence))
    (_, single), single_gradient = losses(params, *inputs(made, UNPACKED, sequence))
    for term in packed:
        np.testing.assert_allclose(packed[term], single[term], rtol=1e-5, err_msg=term)
    for left, right in zip(
        jax.tree.leaves(packed_gradient), jax.tree.leaves(single_gradient), strict=True
    ):
        limit = atol * float(jnp.max(jnp.abs(right))) + floor
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=limit)
    return single_gradient


def descend(
    losses: Losses, params: Params, arguments: tuple, frozen: Sequence[str] = ()
) -> tuple[Params, list[dict[str, float]]]:
    """Twelve steps down the normalised gradient: weights and the terms' sums before each step."""
    history = []

    def step(path: tuple, weight: jax.Array, gradient: jax.Array, norm: float) -> jax.Array:
        name = "/".join(key.key for key in path)
        held = any(re.match(pattern, name) for pattern in frozen)
        return weight if held else weight - 0.3 * np.asarray(gradient) / norm

    for _ in range(12):
        (_, terms), gradient = losses(params, *arguments)
        history.append({name: float(total) for name, (total, _) in terms.items()})
        norm = np.sqrt(sum(np.square(leaf).sum() for leaf in jax.tree.leaves(gradient)))
        params = jax.tree_util.tree_map_with_path(
            lambda path, w, g, n=norm: step(path, w, g, n), params, gradient
        )
    return params, history
