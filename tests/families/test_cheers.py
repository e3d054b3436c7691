"""Cheers: the image side against plain torch, and what its parts do in a whole model."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from data_pipelines.build import sequence_config
from data_pipelines.segments import DRAWN, SOURCE, UNDERSTOOD, Image, Text
from tests.data.samples import picture
from tests.families.cheers_sizes import BUCKETS, FOLD, LATENT, PATCH, SIDE, TOKENS, configured
from tests.families.documents import documents, lively, pack, words
from tests.models.torch_weights import assert_close
from unicom_jax.core.flow import interpolate
from unicom_jax.core.module import iter_specs
from unicom_jax.families.autoencoded import Latents
from unicom_jax.families.build import FAMILIES, build_unified
from unicom_jax.families.cheers import FROZEN_AT_FIRST, CheersImages
from unicom_jax.families.images import ImageModel, Noised
from unicom_jax.families.slots import dummy_draws, pictures_read

RNG = np.random.default_rng(0)

MODEL = build_unified(configured())
IMAGES = MODEL.images
PARAMS = lively(IMAGES, scale=0.12)
GRIDS = np.full((2, 1, 2), SIDE, np.int32)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


CLEAN, NOISE, TIME = (
    normal(2, 1, TOKENS, LATENT),
    normal(2, 1, TOKENS, LATENT),
    np.float32([[0.1], [0.7]]),
)
BETWEEN = 0.2 * normal(32, 32)  # stands for the transformer


def at(time: np.ndarray) -> Noised:
    return Noised(interpolate(CLEAN, NOISE, time), jnp.asarray(time), GRIDS, CLEAN, NOISE)


def speed_of(images, params, noised: Noised):
    tokens, embedded = images.drawn(params, noised)
    return images.velocity(params, jnp.tanh(tokens @ BETWEEN), noised, embedded)


def test_the_image_side_is_the_papers():
    torch = pytest.importorskip("torch")
    from tests.models import cheers_torch as theirs
    from tests.models.cheers_head_torch import Head
    from tests.models.own_names import gradients, load

    def loss(params, noisy):
        noised = at(TIME).replace(noisy=noisy)
        speed = speed_of(IMAGES, params, noised)
        return jnp.sum(jnp.square(speed - (CLEAN - NOISE))), speed

    noisy = np.asarray(at(TIME).noisy)
    grad = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    (_, speed), (weights, inputs) = grad(PARAMS, noisy)

    model = load(
        theirs.Images(
            theirs.Decoder(3, (16, 8), 2, 4),
            theirs.Vision(PATCH, 32, 1, 2, 32, SIDE),
            theirs.Projector(32, 32, FOLD),
            Head((32, FOLD**2 * 32, 2, 4, 2), (32, LATENT, 1, 4, 2), FOLD),
        ),
        PARAMS,
    )
    given = torch.from_numpy(noisy[:, 0].copy()).requires_grad_()
    wanted = torch.from_numpy(CLEAN - NOISE)[:, 0]
    found = model(given, torch.from_numpy(TIME[:, 0]), torch.from_numpy(BETWEEN))
    torch.sum((found - wanted) ** 2).backward()
    assert_close(speed[:, 0], found.detach(), 1e-4, "velocity")
    assert_close(inputs[:, 0], given.grad, 1e-4, "latents")
    reference = gradients(model, PARAMS)
    ours = traverse_util.flatten_dict(weights, sep="/")
    held = [re.compile(pattern) for pattern in IMAGES.frozen(draws=True)]
    assert set(ours) - set(reference) == {
        path for path in ours if any(pattern.match(path) for pattern in held)
    }
    for path in set(ours) - set(reference):
        assert not np.any(ours[path]), path
    for path, value in reference.items():
        if not path.endswith("key/bias") and not path.endswith("to_k/bias"):  # no effect: rounding
            assert_close(ours[path], value, 1e-4, path)


@pytest.fixture(scope="module")
def drawn():
    return jax.jit(IMAGES.drawn)


def test_at_time_1_a_drawn_picture_is_the_one_that_is_read(drawn):
    ended = at(np.ones((2, 1), np.float32))
    np.testing.assert_array_equal(ended.noisy, CLEAN)
    tokens, _ = drawn(PARAMS, ended)
    seen, clean = jax.jit(IMAGES.looked_at)(PARAMS, Latents(CLEAN, GRIDS))
    np.testing.assert_allclose(tokens, seen, atol=1e-6)
    assert clean is seen or np.array_equal(clean, seen)
    assert seen.shape == (2, 1, TOKENS // FOLD**2, 32)


def test_slots_do_not_depend_on_the_time_directly(drawn):
    early, late = at(TIME), at(TIME).replace(time=jnp.asarray(1 - TIME))
    for one, other in zip(drawn(PARAMS, early), drawn(PARAMS, late), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.allclose(drawn(PARAMS, early)[0], drawn(PARAMS, at(1 - TIME))[0], atol=1e-3)


# ---- pictures of several shapes -----------------------------------------------------------


SHAPES = np.array([[2, 4], [4, 2], [0, 0]], np.int32)  # the last row has no picture
RAGGED = build_unified(configured(**BUCKETS, autoencoder__canvas=(SIDE, SIDE))).images
RAGGED_PARAMS = lively(RAGGED, scale=0.12)
PADDED = normal(3, 1, TOKENS // 2, LATENT)


def test_pictures_of_other_shapes_are_read_and_drawn_as_if_alone():
    noised = Noised(jnp.asarray(PADDED), jnp.full((3, 1), 0.4), SHAPES[:, None])
    together = jax.jit(lambda params, noised: speed_of(RAGGED, params, noised))
    padded = together(RAGGED_PARAMS, noised)
    assert padded.shape == PADDED.shape and not np.any(padded[2])
    for row, (rows, columns) in enumerate(SHAPES[:2]):
        space = RAGGED.tokenizer.painter.space.of_grid(int(rows), int(columns))
        painter = dataclasses.replace(RAGGED.tokenizer.painter, space=space)
        tokenizer = dataclasses.replace(RAGGED.tokenizer, painter=painter)
        images = dataclasses.replace(RAGGED, tokenizer=tokenizer)
        one = jax.tree.map(lambda x, row=row: x[row : row + 1], noised)
        alone = jax.jit(lambda params, one, images=images: speed_of(images, params, one))
        np.testing.assert_allclose(padded[row], alone(RAGGED_PARAMS, one)[0], atol=2e-5)


def test_all_shapes_train_the_decoder_and_no_picture_gives_no_nan():
    def size(params):
        noised = Noised(jnp.asarray(PADDED), jnp.full((3, 1), 0.4), SHAPES[:, None])
        return jnp.sum(jnp.square(speed_of(RAGGED, params, noised)))

    gradient = jax.jit(jax.grad(size))(RAGGED_PARAMS)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))
    for part in ("decoder", "vision", "projector", "head"):
        assert all_trained(gradient[part], part)


def all_trained(gradient, part: str) -> bool:
    """Whether every weight has a gradient, except those that the family holds."""
    held = [re.compile(pattern) for pattern in IMAGES.frozen(draws=True)]
    flat = traverse_util.flatten_dict(gradient, sep="/")
    return all(
        np.any(leaf) != any(pattern.match(f"{part}/{path}") for pattern in held)
        for path, leaf in flat.items()
    )


# ---- in a whole model ---------------------------------------------------------------------


def picture_of(seed: int, role: str) -> Image:
    return Image(picture(seed, PATCH * SIDE, PATCH * SIDE), role)


DOCUMENTS = [
    [Text("a red dot"), picture_of(1, DRAWN)],
    [picture_of(2, UNDERSTOOD), Text("how many dots?"), words("one")],
    [picture_of(3, SOURCE), Text("paint it green"), picture_of(4, DRAWN)],
]


def test_one_loss_trains_every_part_and_reports_the_gate_by_time():
    params = lively(MODEL, scale=0.12)
    frozen = {"autoencoder": lively(IMAGES.codec, seed=1, scale=0.12)}
    sequence = sequence_config(configured())
    made = documents(DOCUMENTS, sequence)
    batch = pack(made, [[0, 1], [2]], sequence)
    keys = jax.random.split(jax.random.key(0), 2)

    def loss(params):
        prepared = jax.lax.stop_gradient(IMAGES.prepare(frozen, batch))
        terms = MODEL.loss_terms(params, batch, prepared, keys)
        return terms["flow"][0] + terms["text"][0], (terms, prepared)

    (_, (terms, prepared)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert prepared.latents.shape == (2, 2, TOKENS, LATENT)
    assert float(terms["flow"][1]) == 2 * TOKENS  # two drawn pictures
    gates = [terms[name] for name in terms if name.startswith("gate/t")]
    assert sum(float(count) for _, count in gates) == 2 * TOKENS
    assert sum(float(total) for total, _ in gates) > 0
    assert all(all_trained(gradient[part], part) for part in gradient)
    assert set(gradient) == {"transformer", "decoder", "vision", "projector", "head"}


def test_pictures_in_use_alone_are_computed_and_give_the_same_vectors_and_gradients():
    """Against one pass for what is read and another for what is drawn, of all places for pictures;
    the row of three documents has four views: two draws, a source, and one that is asked about."""
    made = documents(DOCUMENTS, sequence_config(configured()))
    assert [document.size[1:] for document in made] == [(1, 1, 1), (1, 0, 1), (2, 1, 2)]
    batch = pack(made, [[0, 1, 2], [0]], sequence_config(configured()))
    latents = Latents(normal(2, 4, TOKENS, LATENT), batch.grids)
    noised = IMAGES.noise(latents, batch.draws, jax.random.split(jax.random.key(0), 2))
    read = pictures_read(batch)
    assert read.tolist() == [[False, True, True, False], [False] * 4]

    def results(run, views):
        def total(params):
            (seen, _), drawn, embedded = run(IMAGES, params, latents, noised, read, views)
            seen = jnp.where(read[..., None, None], seen, 0)
            real = noised.grids[..., 0] > 0
            drawn = jnp.where(real[..., None, None], drawn, 0)
            embedded = jnp.where(real.reshape(-1, 1, 1, 1), embedded, 0)
            found = (seen, drawn, embedded)
            return sum(jnp.sum(jnp.sin(k * x)) for k, x in enumerate(found, 1)), found

        return jax.jit(jax.value_and_grad(total, has_aux=True))(PARAMS)

    wanted = results(ImageModel.looked_at_and_drawn, 0)
    found = results(CheersImages.looked_at_and_drawn, 4)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * (1 + np.abs(other).max()))


def test_a_row_with_more_views_than_were_said_is_no_number():
    linear = build_unified(configured(unified__cheers__pixels=False)).images
    latents = Latents(normal(2, 2, TOKENS, LATENT), np.full((2, 2, 2), SIDE, np.int32))
    noised = at(TIME)
    read = np.array([[True, True], [True, False]])
    _, drawn, _ = linear.looked_at_and_drawn(lively(linear), latents, noised, read, 2)
    assert np.all(np.isnan(drawn[0])) and np.all(np.isfinite(drawn[1]))


def test_the_first_stage_of_the_paper_trains_projector_and_head():
    held = [re.compile(p) for p in (*IMAGES.frozen(draws=True), *FROZEN_AT_FIRST)]
    paths = ["/".join(path) for path, _ in iter_specs(MODEL.specs())]
    trained = {path.split("/")[0] for path in paths if not any(p.match(path) for p in held)}
    assert trained == {"projector", "head"}
    assert set(IMAGES.frozen(draws=False)) - set(IMAGES.frozen(draws=True)) == {"head/.*"}


def test_features_in_the_place_of_pictures_are_refused():
    sequence = sequence_config(configured())
    batch = pack(documents(DOCUMENTS[:1], sequence), [[0]], sequence).replace(patches=None)
    with pytest.raises(ValueError, match="unified.pathway=cheers reads pixels"):
        IMAGES.prepare({}, batch)


# ---- options of the published trainer -----------------------------------------------------


def errors_by_hand(model, params, batch, prepared, keys):
    """{kind: errors of its pictures' tokens}: of "drawn", "read" and "dummy" pictures, each alone.

    A dummy is what stands in front of a document without pictures: here of the last row.
    """
    images, rows = model.images, len(batch.tokens)
    noised = images.noise(prepared, batch.draws, keys)
    dummies = np.zeros(batch.draws.shape, bool)
    dummies[-1] = batch.draws[-1] >= 0
    time = np.where(dummies, 0.0, noised.time)
    noisy = np.where(dummies[..., None, None], noised.noise, noised.noisy)

    @jax.jit
    def read(noised):
        drawn, _ = images.drawn(params, noised)
        text = model._embed(params, batch, (*images.looked_at(params, prepared), drawn))
        return model.transformer(params["transformer"], text, batch.positions, batch.mask)[0]

    @jax.jit
    def speed_of(one, states):
        return images.velocity(params, states, one, images.drawn(params, one)[1])[0, 0]

    hidden = read(noised.replace(noisy=noisy, time=time))
    found = {"drawn": [], "read": [], "dummy": []}

    def add(kind, row, slots, latents, time, target):
        one = Noised(latents[None, None], jnp.float32([[time]]), jnp.full((1, 1, 2), SIDE))
        speed = speed_of(one, hidden[row, slots][None, None])
        found[kind].append(np.mean(np.square(speed - target), axis=-1))

    for row in range(rows):
        for draw in np.flatnonzero(batch.draws[row] >= 0):
            slots = np.flatnonzero((batch.roles[row] == 4) & (batch.image_index[row] == draw))
            kind = "dummy" if dummies[row, draw] else "drawn"
            target = noised.clean[row, draw] - noised.noise[row, draw]
            add(kind, row, slots, noisy[row, draw], time[row, draw], target)
        for image in range(batch.grids.shape[1]):
            read = np.isin(batch.roles[row], (2, 3)) & (batch.image_index[row] == image)
            if read.any():
                add("read", row, np.flatnonzero(read), prepared.latents[row, image], 1.0, 0.0)
    return found


def test_the_flow_loss_of_the_published_trainer_is_a_mean_over_all_pictures():
    config = configured(unified__cheers__dummies=True)
    model, sequence = build_unified(config), sequence_config(config)
    params = lively(model, scale=0.12)
    made = documents([*DOCUMENTS, [words("a red dot")]], sequence)
    batch = pack(made, [[0, 1], [2], [3]], sequence)
    keys = jax.random.split(jax.random.key(0), 3)
    frozen = {"autoencoder": lively(IMAGES.codec, seed=1, scale=0.12)}
    prepared = model.images.prepare(frozen, batch)
    by_hand = errors_by_hand(model, params, batch, prepared, keys)
    assert {kind: len(errors) for kind, errors in by_hand.items()} == {
        "drawn": 2, "read": 2, "dummy": 1,
    }  # fmt: skip
    for flow_over, kinds in (("drawn", ["drawn"]), ("all", [*by_hand])):
        config.unified.cheers.flow_over = flow_over
        model = dataclasses.replace(build_unified(config), parts=1)
        terms = jax.jit(model.loss_terms)(params, batch, prepared, keys)
        errors = np.concatenate([each for kind in kinds for each in by_hand[kind]])
        assert float(terms["flow"][1]) == errors.size
        np.testing.assert_allclose(terms["flow"][0] / terms["flow"][1], errors.mean(), rtol=1e-4)
        np.testing.assert_allclose(np.ravel(terms["flow/parts"]), terms["flow"], rtol=1e-5)


def test_a_model_reads_a_batch_of_its_dummies_and_only_those_are_at_time_0():
    assert not MODEL.images.dummies and MODEL.images.flow_over == "drawn"
    sequence = dataclasses.replace(sequence_config(configured()), dummies=True)
    batch = pack(documents([*DOCUMENTS, [words("dot")]], sequence), [[0, 3], [2]], sequence)
    found = dummy_draws(batch)
    np.testing.assert_array_equal(found, [[False, True], [False, False]])


# ---- the paper's ablations ----------------------------------------------------------------


def test_without_pixel_reconstruction_the_encoder_reads_latents():
    config = configured()
    config.unified.cheers.update({"pixels": False})
    images = build_unified(config).images
    params = lively(images)
    assert set(params) == {"latent_in", "vision", "projector", "head"}
    assert set(FAMILIES["cheers"].starts_from(config)) == {"vision"}
    assert images.frozen(draws=True) == ("vision/head/.*",)
    _, embedded = images.drawn(params, at(TIME))
    plain, positions = at(TIME).noisy[:, 0], params["vision"]["positions"]
    for layer in (params["latent_in"], params["vision"]["embedding"]):
        plain = plain @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(embedded[:, 0], plain + positions.reshape(TOKENS, -1), atol=1e-5)


def test_of_predicted_data_the_velocity_leads_there_and_the_loss_is_that_of_velocities():
    plain, data = (
        build_unified(configured(unified__cheers__pixels=False, unified__prediction=kind)).images
        for kind in ("velocity", "data")
    )
    params, noised = lively(plain), at(TIME)
    tokens, embedded = plain.drawn(params, noised)
    given = plain.velocity(params, tokens, noised, embedded)
    speed = data.velocity(params, tokens, noised, embedded)
    left = 1 - TIME[..., None, None]
    np.testing.assert_allclose(speed, (given - noised.noisy) / left, rtol=1e-4, atol=1e-4)
    total, count = data.loss_terms(params, tokens, noised, embedded)["flow"]
    error = np.mean(np.square(speed - (CLEAN - NOISE)), axis=-1)  # no time is at the floor here
    assert count == 2 * TOKENS and total == pytest.approx(np.sum(error), rel=1e-4)


def test_memory_of_the_decoder_copy_is_saved_apart_from_the_frozen_ones():
    images = build_unified(configured(unified__cheers__decoder_remat=True)).images
    assert images.tokenizer.painter.space.autoencoder.remat
    assert not images.codec.space.autoencoder.remat
    assert images.specs().keys() == IMAGES.specs().keys()


def test_without_compression_a_latent_takes_a_slot():
    images = build_unified(configured(unified__cheers__pixels=False, unified__fold=1)).images
    params = lively(images)
    tokens, embedded = images.drawn(params, at(TIME))
    assert tokens.shape == (2, 1, TOKENS, 32) and images.shape_of(TOKENS) == (TOKENS, LATENT)
    speed = images.velocity(params, tokens, at(TIME), embedded)
    assert speed.shape == CLEAN.shape and np.abs(speed).max() > 0


def test_only_a_head_of_velocities_has_the_released_grid_with_its_step_at_time_1():
    assert IMAGES.time_grids == ("even", "released")
    assert build_unified(configured(unified__prediction="data")).images.time_grids == ("even",)
