"""Pathway II: queries read a frozen model, and a flow decoder draws under what they read."""

from __future__ import annotations

import dataclasses
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.families.documents import (
    ALL,
    PACKED,
    TOKENS,
    cut,
    descend,
    documents,
    inputs,
    lively,
    make_model,
    packing_changes_nothing,
)
from tests.tiny import tiny_config
from unicom_jax.core.batch import MaskIntervals
from unicom_jax.core.module import iter_specs
from unicom_jax.families.build import build_unified
from unicom_jax.families.images import Noised
from unicom_jax.families.unicom_query import QueryImages

pytestmark = pytest.mark.usefixtures("noise_is_given")


@pytest.fixture(scope="module")
def model():
    return make_model(unified__pathway="query", unified__transformer__depth=1)


@pytest.fixture(scope="module")
def params(model):
    return lively(model[0])


@pytest.fixture(scope="module")
def losses(model):
    def flow(params, *args):
        terms = model[0].loss_terms(params, *args)
        return terms["flow"][0], terms

    return jax.jit(jax.value_and_grad(flow, has_aux=True))


def test_packed_documents_have_the_losses_and_gradients_of_unpacked_ones(model, params, losses):
    packing_changes_nothing(losses, params, model[1], atol=2e-5, floor=1e-7)


def test_the_noise_reaches_the_flow_decoder_only(model, params, losses):
    made = documents(ALL, model[1])
    (_, one), _ = losses(params, *inputs(made, PACKED, model[1]))
    (_, other), _ = losses(params, *inputs(made, PACKED, model[1], noise_seed=1))
    assert one["text"][0] == other["text"][0]
    assert one["flow"][0] != other["flow"][0]
    assert one["flow"][1] == 3 * TOKENS  # DRAW, EDIT and TALK draw one image each


def test_queries_connector_and_decoder_learn_while_the_reader_stays(model, params, losses):
    arguments = inputs(documents(ALL, model[1]), PACKED, model[1])
    start = params
    params, history = descend(losses, params, arguments, model[0].frozen(draws=True))
    assert history[-1]["flow"] < 0.9 * history[0]["flow"], history
    for part in ("transformer", "embedding"):
        chex.assert_trees_all_equal(params[part], start[part])
    assert not np.array_equal(params["queries"], start["queries"])


@pytest.mark.parametrize(
    ("draws", "held"),
    [
        (True, {"transformer", "embedding"}),
        (False, {"queries", "connector", "flow_decoder"}),
    ],
)
def test_the_reader_is_frozen_while_the_model_learns_to_draw_and_only_then(model, draws, held):
    names = ["/".join(path) for path, _ in iter_specs(model[0].specs())]
    patterns = model[0].frozen(draws=draws)
    frozen = {name for name in names if any(re.match(p, name) for p in patterns)}
    assert frozen == {name for name in names if name.split("/")[0] in held}


def test_drawing_behind_a_cached_prefix_reads_what_training_reads(model, params):
    """The condition of a drawn image is the same from a packed row as from a cache."""
    pathway, sequence = model
    made = documents([ALL[1]], sequence)
    batch, prepared, (time, noise) = inputs(made, [[0]], sequence)
    prefix = len(made[0]) - TOKENS

    @jax.jit
    def cached(params, batch, prepared, noisy, time):
        read, drawn = cut(batch, 0, prefix), cut(batch, prefix, prefix + TOKENS)
        cache = pathway.transformer.init_cache(1, prefix + TOKENS)
        _, cache = pathway.prefill(params, read, prepared, cache)
        context = pathway.begin_drawing(
            params, cache, drawn.positions, drawn.mask, jnp.array([[2, 2]]), prefix
        )
        return pathway.velocity(params, context, noisy, time)

    clean = prepared.latents[:, 0]
    noisy = time[:, 0, None, None] * clean + (1 - time[:, 0, None, None]) * noise[:, 0]
    predicted = cached(params, batch, prepared, noisy, time[:, 0])
    error = np.square(np.asarray(predicted) - (clean - noise[:, 0])).mean(-1).sum()
    terms = jax.jit(pathway.loss_terms)(params, batch, prepared, (time, noise))
    np.testing.assert_allclose(error, terms["flow"][0], rtol=1e-4)


def test_what_is_made_beside_the_queries_reaches_each_step_of_sampling(model):
    pathway, seen = model[0], []

    class Noting(QueryImages):
        def drawn(self, params, noised):
            return super().drawn(params, noised)[0], jnp.full((1, 1, 3), 7.0)

        def velocity(self, params, condition, noised, aux):
            seen.append(aux)
            return super().velocity(params, condition, noised, None)

    fields = {f.name: getattr(pathway.images, f.name) for f in dataclasses.fields(QueryImages)}
    noting = dataclasses.replace(pathway, images=Noting(**fields))
    slots = jnp.zeros((1, TOKENS), jnp.int32)

    def draw(params):
        cache = pathway.transformer.init_cache(1, TOKENS)
        mask = MaskIntervals(slots, slots, slots, slots + TOKENS)
        positions, grids = jnp.zeros((1, TOKENS, 2), jnp.int32), jnp.array([[2, 2]])
        context = noting.begin_drawing(params, cache, positions, mask, grids, 0)
        return noting.velocity(params, context, jnp.zeros((1, TOKENS, 8)), jnp.zeros(1))

    jax.eval_shape(draw, pathway.abstract())
    assert [aux.shape for aux in seen] == [(1, 1, 3)]


def test_a_query_knows_its_row_and_column(model, params):
    """The same tokens stand at other places in a picture of another shape."""
    images = model[0].images
    noisy, time = jnp.zeros((1, 2, TOKENS, 8)), jnp.zeros((1, 2))
    square, wide = images.drawn(params, Noised(noisy, time, jnp.array([[[2, 2], [1, 4]]])))[0][0]
    same = [bool(np.allclose(a, b)) for a, b in zip(square, wide, strict=True)]
    assert same == [True, True, False, False]  # (0, 0) and (0, 1) in both; then (1, 0) and (0, 2)


def test_there_is_a_query_for_every_token_that_a_picture_can_have():
    fixed = build_unified(tiny_config(unified__pathway="query"))
    assert fixed.images.queries == TOKENS
    free = tiny_config(unified__pathway="query", data__policy="naflex", data__max_tokens=36)
    assert build_unified(free).images.queries == 36
