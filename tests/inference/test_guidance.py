"""How the velocities of several branches become one."""

from __future__ import annotations

import copy
import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.segments import DRAWN, SOURCE, Text
from data_pipelines.sequences.document import MASK_FIELDS, drawing_slots
from data_pipelines.sequences.dropout import build_training
from data_pipelines.sequences.tokenizer import with_token
from tests.families.documents import image
from unicom_jax.core.batch import Role
from unicom_jax.inference import guidance
from unicom_jax.inference.drawing import Drawing
from unicom_jax.inference.guidance import CONDITIONAL, PICTURELESS, WORDLESS, Scales

RNG = np.random.default_rng(0)
C, W, P = (RNG.standard_normal((2, 4, 3)).astype(np.float32) for _ in range(3))
VALID = jnp.array([[True] * 4, [True, True, False, False]])
ALL = {CONDITIONAL: C, WORDLESS: W, PICTURELESS: P}


def scales(words: float, pictures: float, least: float = 0.0) -> Scales:
    return Scales(*map(jnp.float32, (words, pictures, least)))


def combine(branches, *rest):
    return np.asarray(guidance.combine({k: jnp.asarray(v) for k, v in branches.items()}, *rest))


def test_words_guide_first_and_pictures_then():
    by_words = W + 3 * (C - W)
    found = combine(ALL, scales(3, 1.5), "none", VALID)
    np.testing.assert_allclose(found, P + 1.5 * (by_words - P), rtol=1e-5)
    without = combine({CONDITIONAL: C, WORDLESS: W}, scales(3, 1), "none", VALID)
    np.testing.assert_allclose(without, by_words, rtol=1e-5)


def test_a_scale_of_one_is_no_branch():
    assert Drawing(guidance=1.0).branches == (CONDITIONAL,)
    assert Drawing(guidance=2.0).branches == (CONDITIONAL, WORDLESS)
    assert Drawing(guidance=1.0, image_guidance=2.0).branches == (CONDITIONAL, PICTURELESS)
    assert Drawing(image_guidance=2.0).branches == (CONDITIONAL, WORDLESS, PICTURELESS)


@pytest.mark.parametrize(("renorm", "axes"), [("picture", (1, 2)), ("token", (2,))])
def test_renormalisation_bounds_the_norm_by_the_conditional_velocity(renorm, axes):
    found = combine(ALL, scales(5, 2), renorm, VALID)
    plain = combine(ALL, scales(5, 2), "none", VALID)

    def norm(x):
        return np.linalg.norm(np.where(VALID[..., None], x, 0), axis=axes, keepdims=True)

    factor = np.clip(norm(C) / (norm(plain) + 1e-8), 0, 1)
    np.testing.assert_allclose(found, plain * factor, rtol=1e-4)
    assert (norm(found) <= norm(C) * 1.0001).all() and (factor < 1).any()


def test_renormalisation_of_words_leaves_guidance_by_pictures_alone():
    by_words = combine({CONDITIONAL: C, WORDLESS: W}, scales(5, 1), "token", VALID)
    found = combine(ALL, scales(5, 2), "words", VALID)
    np.testing.assert_allclose(found[VALID], (P + 2 * (by_words - P))[VALID], rtol=1e-4, atol=1e-5)


def test_the_least_factor_bounds_renormalisation():
    plain = combine(ALL, scales(9, 3), "none", VALID)
    np.testing.assert_allclose(combine(ALL, scales(9, 3, 1.0), "picture", VALID), plain, rtol=1e-6)


# ---- in the generator -------------------------------------------------------------------------


def test_an_edit_is_drawn_with_three_branches_and_each_scale_counts(generator):
    source = image(3, SOURCE).pixels
    options = {"steps": 2, "guidance": 2.0}
    plain, pictured, renormed = (
        generator.edit(source, "paint it green", **options, **more)[0].astype(int)
        for more in ({}, {"image_guidance": 3.0}, {"image_guidance": 3.0, "renorm": "picture"})
    )
    assert np.abs(plain - pictured).max() > 1 and np.abs(pictured - renormed).max() > 1


def test_a_prompt_without_pictures_has_no_branch_without_pictures(generator):
    options = {"steps": 2, "guidance": 2.0}
    plain = generator.paint([[Text("a red dot")]], **options)
    pictured = generator.paint([[Text("a red dot")]], image_guidance=3.0, **options)
    np.testing.assert_array_equal(plain, pictured)


def test_the_branch_without_pictures_keeps_the_words(generator):
    settings = Drawing(image_guidance=2.0)
    said = [image(3, SOURCE), Text("paint it green")]
    conditional, wordless, pictureless = generator.branches(said, settings)
    assert [len(one.grids) for one in (conditional, wordless, pictureless)] == [1, 1, 0]
    spelt = generator.tokenizer.decode(pictureless.tokens)
    assert "green" in spelt and "green" not in generator.tokenizer.decode(wordless.tokens)


@pytest.mark.parametrize(
    "said",
    [
        [Text("a red dot")],
        [image(3, SOURCE), Text("paint it green")],
        [Text("a red dot"), image(4, DRAWN), Text("paint it green")],
    ],
    ids=["drawing", "edit", "second turn"],
)
@pytest.mark.parametrize("form", ["empty", "masked"])
def test_the_branch_without_words_is_what_training_saw_without_words(generator, said, form):
    """Token for token, with the positions and the mask of the picture that is drawn."""
    model = copy.copy(generator)
    config = dataclasses.replace(generator.sequence, unconditional=form, cfg_dropout=1.0)
    model.sequence, model.tokenizer = config, with_token(generator.tokenizer, "no_mean")
    seen = build_training([*said, image(5, DRAWN)], model.tokenizer, config, RNG)
    conditional, wordless = model.branches(said, Drawing(guidance=2.0))
    drawn = seen.roles == Role.NOISY
    last = seen.image_index == seen.image_index[drawn].max()  # of several drawn images
    (place,) = set(seen.mask.context_stop[drawn & last])
    assert place == len(wordless)
    for name in ("tokens", "roles", "positions", "image_index", "image_token"):
        np.testing.assert_array_equal(getattr(wordless, name), getattr(seen, name)[:place], name)
    for name in MASK_FIELDS:
        mask, trained = getattr(wordless.mask, name), getattr(seen.mask, name)
        np.testing.assert_array_equal(mask, trained[:place], name)
    rows, cols = config.token_grid(*seen.grids[-1], Role.NOISY)
    slots = drawing_slots(len(wordless), wordless.next_position, rows, cols)
    np.testing.assert_array_equal(slots.positions, seen.positions[drawn & last])
    assert (len(wordless) == len(conditional)) == (form == "masked")


def test_an_option_that_does_not_exist_is_refused(generator):
    with pytest.raises(ValueError, match="guidence is not a drawing option; choose from"):
        generator.draw("a red dot", guidence=2.0)
