"""Pathway I: packing changes nothing, noisy copies are invisible, each input choice is obeyed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.sequences.document import drawing_slots
from tests.families.documents import (
    ALL,
    DRAW,
    EDIT,
    LOOK,
    PACKED,
    TALK,
    descend,
    documents,
    inputs,
    lively,
    make_model,
    packing_changes_nothing,
)
from unicom_jax.families.images import draw_noise
from unicom_jax.families.latents import ImageEmbedding
from unicom_jax.families.slots import pick_draws, place_images

pytestmark = pytest.mark.usefixtures("noise_is_given")


@pytest.fixture(scope="module")
def model():
    return make_model()


@pytest.fixture(scope="module")
def params(model):
    return lively(model[0])


@pytest.fixture(scope="module")
def losses(model):
    """Terms and the gradient of their weighted sum, compiled once for each shape of batch."""

    def total(params, *args):
        terms = model[0].loss_terms(params, *args)
        return 5.0 * terms["flow"][0] + terms["text"][0], terms

    return jax.jit(jax.value_and_grad(total, has_aux=True))


def test_packed_documents_have_the_losses_and_gradients_of_unpacked_ones(model, params, losses):
    gradient = packing_changes_nothing(losses, params, model[1], atol=1e-5)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_noisy_copy_changes_no_text_logit_and_no_other_image(model, params, losses):
    made = documents(ALL, model[1])
    batch, prepared, (time, noise) = inputs(made, PACKED, model[1])
    _, _, (other_time, other_noise) = inputs(made, PACKED, model[1], noise_seed=1)

    def run(*changed):  # draws of the packed row whose noise and time are the other ones
        pick = np.isin(np.arange(time.shape[1]), changed)[None]
        drawn = (
            np.where(pick, other_time, time),
            np.where(pick[..., None, None], other_noise, noise),
        )
        (_, terms), _ = losses(params, batch, prepared, drawn)
        return float(terms["text"][0]), float(terms["flow"][0])

    # Draws of the row: 0 of DRAW, 1 of EDIT, 2 of TALK.
    (text, flow), (text_0, flow_0) = run(), run(0)
    (text_2, flow_2), (text_02, flow_02) = run(2), run(0, 2)
    assert text == text_0 == text_2 == text_02
    assert abs(flow_0 - flow) > 0.1 and abs(flow_2 - flow) > 0.1
    # Each draw's loss is its own: what two changes do together is what they do one by one.
    np.testing.assert_allclose(flow_02 - flow, (flow_0 - flow) + (flow_2 - flow), atol=2e-4)


def test_a_few_steps_lower_both_losses(model, params, losses):
    arguments = inputs(documents(ALL, model[1]), PACKED, model[1])
    _, history = descend(losses, params, arguments)
    first, last = history[0], history[-1]
    assert last["flow"] < 0.9 * first["flow"] and last["text"] < 0.95 * first["text"], history


# ---- what an image is read from -----------------------------------------------------------


@pytest.mark.parametrize(
    ("understanding", "reads_features", "reads_latents"),
    [
        ("features", True, False),
        ("latents", False, True),
        ("channel_concat", True, True),
        ("sequence_concat", True, True),
    ],
)
def test_an_understood_image_is_read_from_what_the_config_names(
    understanding, reads_features, reads_latents
):
    model, sequence = make_model(
        unified__understanding=understanding, unified__transformer__depth=1
    )
    params, terms = lively(model), jax.jit(model.loss_terms)
    batch, prepared, noise = inputs(documents([LOOK], sequence), [[0]], sequence)

    def text(**changed):
        return float(terms(params, batch, prepared.replace(**changed), noise)["text"][0])

    plain = text()
    assert (text(features=prepared.features + 1) != plain) == reads_features
    assert (text(latents=prepared.latents + 1) != plain) == reads_latents


@pytest.mark.parametrize(
    ("source", "reads_features", "reads_latents"),
    [("latents", False, True), ("features", True, False), ("both", True, True)],
)
def test_the_source_of_an_edit_is_read_from_what_the_config_names(
    source, reads_features, reads_latents
):
    model, sequence = make_model(unified__edit_source=source, unified__transformer__depth=1)
    params, terms = lively(model), jax.jit(model.loss_terms)
    batch, prepared, noise = inputs(documents([EDIT], sequence), [[0]], sequence)
    source = np.array([1.0, 0.0], np.float32)[None, :, None, None]  # not the target

    def flow(**changed):
        return float(terms(params, batch, prepared.replace(**changed), noise)["flow"][0])

    plain = flow()
    assert (flow(features=prepared.features + source) != plain) == reads_features
    assert (flow(latents=prepared.latents + source) != plain) == reads_latents


def test_text_after_a_drawn_image_reads_its_clean_latents(model, params):
    terms = jax.jit(model[0].loss_terms)
    batch, prepared, noise = inputs(documents([TALK], model[1]), [[0]], model[1])
    plain = terms(params, batch, prepared, noise)["text"][0]
    changed = prepared.replace(latents=prepared.latents + 1)
    assert plain != terms(params, batch, changed, noise)["text"][0]


def test_an_unknown_understanding_names_the_choices():
    with pytest.raises(ValueError, match="unified.understanding='pixels' is not one of features"):
        ImageEmbedding(FEATURES := 32, 8, FEATURES, understanding="pixels")


# ---- noise --------------------------------------------------------------------------------


def test_a_row_gets_the_same_noise_wherever_it_stands():
    keys = jax.random.split(jax.random.key(0), 4)
    time, noise = draw_noise((2, 4, 8), keys)
    last_time, last_noise = draw_noise((2, 4, 8), keys[3:])
    np.testing.assert_array_equal(time[3:], last_time)
    np.testing.assert_array_equal(noise[3:], last_noise)
    assert len(np.unique(time)) == time.size  # every image has a time of its own


def test_without_a_drawn_image_there_is_no_flow_loss(model, params):
    terms = jax.jit(model[0].loss_terms)
    total, count = terms(params, *inputs(documents([LOOK], model[1]), [[0]], model[1]))["flow"]
    assert total == 0 and count == 0
    _, count = terms(params, *inputs(documents([DRAW], model[1]), [[0]], model[1]))["flow"]
    assert count == 4


# ---- what the head gives ------------------------------------------------------------------


def velocities(prediction: str, params, latents, time) -> jax.Array:
    """Of one image of four tokens that is drawn behind nothing, from the same weights."""
    pathway, _ = make_model(unified__prediction=prediction)
    slots = drawing_slots(0, 0, 2, 2)
    mask = jax.tree.map(lambda field: jnp.asarray(field)[None], slots.mask)
    context = pathway.begin_drawing(
        params, pathway.transformer.init_cache(1, 4), slots.positions[None], mask,
        jnp.array([[2, 2]]), 0,
    )  # fmt: skip
    return pathway.velocity(params, context, latents, time)


def test_data_prediction_leads_along_a_straight_line_to_what_the_head_gives(params):
    latents = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 8)), jnp.float32)
    time = jnp.array([0.75])
    given = velocities("velocity", params, latents, time)  # the head's own output
    led_by_data = velocities("data", params, latents, time)
    np.testing.assert_allclose(latents + 0.25 * led_by_data, given, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("floor", [0.05, 0.5])
def test_data_prediction_weighs_its_error_by_the_time_that_is_left(params, floor):
    plain, sequence = make_model()
    pathway, _ = make_model(unified__prediction="data", unified__time_floor=floor)
    batch, prepared, (time, noise) = inputs(documents([DRAW], sequence), [[0]], sequence)
    # The same weights give the same numbers x; as velocities they miss z_1 - ε, as data z_1.
    total = {}
    for name, model in (("velocity", plain), ("data", pathway)):
        terms = jax.jit(model.loss_terms)(params, batch, prepared, (time, noise))
        flow, count = terms["flow"]
        total[name] = float(flow)
        assert count == 4
    given = jax.jit(head_output, static_argnums=0)(plain, params, batch, prepared, (time, noise))
    given = np.asarray(given)[0, 0]
    clean, speed = prepared.latents[0, 0], prepared.latents[0, 0] - noise[0, 0]
    left = max(1.0 - time[0, 0], floor)
    assert total["velocity"] == pytest.approx(np.square(given - speed).mean(-1).sum(), rel=1e-4)
    expected = np.square(given - clean).mean(-1).sum() / left**2
    assert total["data"] == pytest.approx(expected, rel=1e-4)


def head_output(model, params, batch, prepared, draws) -> jax.Array:
    """(1, 1, 4, d): what the head gives at the four NOISY slots of a row with one image."""
    images = model.images
    noised = images.noise(prepared, batch.draws, draws)
    text = model.transformer.embed(params["transformer"], batch.tokens)
    vectors = *images.looked_at(params, prepared), images.drawn(params, noised)[0]
    hidden = place_images(text, batch, *vectors)
    hidden, _ = model.transformer(params["transformer"], hidden, batch.positions, batch.mask)
    states = pick_draws(hidden, batch, 4)
    return images.head(params["head"], states, noised.time)


def test_an_unknown_prediction_names_the_choices():
    with pytest.raises(ValueError, match="unified.prediction='noise' is not one of velocity, data"):
        make_model(unified__prediction="noise")
