"""Rollouts do what the inference engine and training's own pass do, and the drawer sees words
only.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.build import sequence_config
from data_pipelines.segments import UNDERSTOOD, Image, Text
from data_pipelines.sequences.dropout import build_unconditional
from data_pipelines.sequences.sequence import VISION_START, build_document, build_prefix
from data_pipelines.sequences.tokenizer import with_token
from tests.rl.conftest import PROMPT
from unicom_jax.core.flow import integrate
from unicom_jax.inference import conversations
from unicom_jax.inference.canvas import canvas_of
from unicom_jax.inference.prompt import collate
from unicom_jax.inference.text import Sampling
from unicom_jax.rl import rollouts
from unicom_jax.rl.rows import caption_log_probs, log_probs_of, packed, picture_rows, with_captions
from unicom_jax.rl.template import make_template

MOST = 6
CAPTION = "a red dot on the left"


def ids(generator, *texts, width=40):
    out = np.full((len(texts), width), -1, np.int32)
    for row, text in zip(out, texts, strict=True):
        encoded = generator.tokenizer.encode(text)
        row[: len(encoded)] = encoded
    return jnp.array(out)


@pytest.fixture(scope="module")
def seen(setting):
    """The rows of the two pictures, and what frozen models make of these."""
    rows = picture_rows(setting.template, setting.patches, setting.grids)
    trees = setting.models.family.frozen_of(setting.params)
    return rows, jax.jit(setting.models.unified.images.prepare)(trees, rows)


@pytest.fixture(scope="module")
def scored(setting, seen):
    """Log-probabilities of captions of the two pictures."""
    rows, prepared = seen
    model, unified = setting.models.unified, setting.params["unified"]
    return jax.jit(lambda t: caption_log_probs(model, unified, prepared, rows, setting.template, t))


def test_pieces_are_packed_without_the_gaps_behind_them():
    one, two = jnp.array([[1, 2, -1], [3, -1, -1]]), jnp.array([[7, -1], [8, 9]])
    tokens, parts = packed(one, two)
    np.testing.assert_array_equal(tokens, [[1, 2, 7, -1, -1], [3, 8, 9, -1, -1]])
    assert parts[0, :3].tolist() == [0, 0, 1] and parts[1, :3].tolist() == [0, 1, 1]


def test_log_probabilities_are_those_of_the_training_document(generator, setting, scored):
    """Built by the data pipeline, for a caption and its proper end."""
    tokens = ids(generator, CAPTION, CAPTION)
    length = int((tokens[0] >= 0).sum())
    tokens = tokens.at[:, length].set(setting.template.closing)
    found = np.asarray(scored(tokens))[:, : length + 1]
    for row, pixels in enumerate(setting.pictures):
        answer = Text(CAPTION, supervised=True)
        segments = [Image(pixels, UNDERSTOOD), Text(PROMPT), answer]
        document = build_document(segments, generator.tokenizer, generator.sequence)
        batch = collate([document], generator.sequence).batch
        patches = setting.patches[row][None, None]
        batch = batch.replace(patches=patches)
        model, unified = setting.models.unified, setting.params["unified"]
        trees = setting.models.family.frozen_of(setting.params)

        @jax.jit
        def alone(batch, model=model, unified=unified, trees=trees):
            hidden = model.read(unified, batch, model.images.prepare(trees, batch))
            return log_probs_of(model, unified, hidden, batch.targets)

        predicted = np.asarray(batch.target_weights[0]) > 0
        expected = np.asarray(alone(batch))[0][predicted]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=1e-5)


def test_what_the_engine_writes_greedily_is_likeliest_by_trainings_own_pass(
    generator, setting, seen
):
    said = [[Image(one, UNDERSTOOD), Text(PROMPT)] for one in setting.pictures]
    written = generator.tokens(said, max_tokens=MOST, sampling=Sampling())
    tokens = np.full((2, MOST), -1, np.int32)
    for row, own in zip(tokens, written, strict=True):
        row[: len(own)] = own
    rows, prepared = seen
    model, unified, template = setting.models.unified, setting.params["unified"], setting.template

    @jax.jit
    def likeliest(tokens):
        hidden = model.read(unified, with_captions(template, rows, tokens), prepared)
        last = template.length - 1
        before = [hidden[:, last : last + 1], hidden[:, template.slots : -1]]
        return jnp.argmax(model.logits(unified, jnp.concatenate(before, axis=1)), axis=-1)

    found = np.asarray(likeliest(jnp.array(tokens)))
    np.testing.assert_array_equal(np.where(tokens >= 0, found, -1), tokens)


@pytest.fixture(scope="module")
def write(setting, seen):
    rows, prepared = seen
    model, unified = setting.models.unified, setting.params["unified"]
    return jax.jit(
        lambda key: rollouts.write_captions(
            model, unified, prepared, rows, setting.template, 3, MOST, key
        )
    )


def test_captions_are_sampled_by_the_key_and_end_at_a_stop(setting, write):
    one, again, other = (np.asarray(write(jax.random.key(seed))) for seed in (0, 0, 1))
    assert one.shape == (6, MOST)
    np.testing.assert_array_equal(one, again)
    assert (one != other).any() and len({tuple(row) for row in one.tolist()}) > 1
    for row in one:
        stop = np.isin(row, setting.template.stops)
        assert stop.sum() <= 1 and (row[np.argmax(stop) + 1 :] == -1).all() or not stop.any()


def test_samples_are_as_frequent_as_their_probability_says(setting, seen, scored):
    """First tokens of many captions of the first picture, against the model's own chances."""
    rows, prepared = seen
    model, unified = setting.models.unified, setting.params["unified"]
    many = jax.jit(
        lambda key: rollouts.write_captions(
            model, unified, prepared, rows, setting.template, 512, 1, key
        )
    )(jax.random.key(3))[:512, 0]
    counts = np.bincount(np.asarray(many))
    for token in np.argsort(counts)[-2:]:
        chance = float(np.exp(scored(jnp.full((2, 1), int(token)))[0, 0]))
        share = counts[token] / 512
        assert abs(share - chance) < 5 * np.sqrt(chance * (1 - chance) / 512)


def test_the_words_of_a_caption_are_without_marks_and_know_their_end(generator, setting):
    tokenizer, closing = generator.tokenizer, setting.template.closing
    word = tokenizer.encode("dot")[0]
    tokens = jnp.array(
        [
            [word, tokenizer.vision_start, -1],
            [tokenizer.turn_start, word, closing],
            [closing, -1, -1],
        ]
    )
    words, ended = rollouts.words_of(tokens, setting.template)
    np.testing.assert_array_equal(words, [[word, -1, -1], [word, -1, -1], [-1, -1, -1]])
    np.testing.assert_array_equal(ended, [False, True, True])


def drawn_of(setting, words, noise, steps=3):
    model, unified = setting.models.unified, setting.params["unified"]

    @jax.jit
    def run(words):
        read = rollouts.read_prompts(model, unified, words, setting.template)
        context = rollouts.begin_drawing(model, unified, read, setting.grids)
        return integrate(rollouts.velocity_of(model, unified, context), noise, steps)

    return np.asarray(run(words))


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_caption_is_drawn_as_the_engine_draws_it_as_a_prompt(
    generator, setting, guidance, monkeypatch
):
    texts = CAPTION, "a dot"
    model, unified, template = setting.models.unified, setting.params["unified"], setting.template
    noise = jax.random.normal(jax.random.key(4), (2, *model.images.shape_of(4)))
    settings = generator.drawing(steps=3, guidance=guidance, shift=1.0)
    monkeypatch.setattr(rollouts, "noise_of", lambda *how: noise)

    @jax.jit
    def run(words):
        read = rollouts.read_prompts(model, unified, words, template, settings.branches)
        context = rollouts.begin_drawing(model, unified, read, setting.grids)
        plain = integrate(rollouts.velocity_of(model, unified, context), noise, 3)
        drawn = rollouts.draw(model, unified, read, setting.grids, settings, jax.random.key(0))
        return drawn, plain

    found, plain = run(ids(generator, *texts))
    assert np.allclose(found, plain, atol=1e-4) == (guidance == 1.0)
    given = iter(np.asarray(noise))
    monkeypatch.setattr(conversations, "noise_at", lambda *how: [next(given)])
    canvas = canvas_of((2, 2), generator.models.canvas, generator.sequence)
    said = [[Text(text)] for text in texts]
    expected = generator._draw(said, [0, 1], [(2, 2)] * 2, canvas, settings, 0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["empty", "masked"])
def test_prompts_without_words_are_those_of_training(generator, kind):
    """Built by the data pipeline, token for token; and so are those with words."""
    own = with_token(generator.tokenizer, "no_mean")
    config = generator.config.copy_and_resolve_references()
    config.data.unconditional = kind
    template, sequence = make_template(config, own, PROMPT), sequence_config(config)
    texts = CAPTION, "a dot"
    words = ids(generator, *texts)
    makers = {rollouts.prompts_of: build_prefix, rollouts.wordless: build_unconditional}
    for found, expected in makers.items():
        for row, text in zip(np.asarray(found(words, template)), texts, strict=True):
            document = expected([Text(text)], own, sequence, VISION_START)
            np.testing.assert_array_equal(row[row >= 0], document.tokens)


def test_the_drawer_depends_on_words_alone(setting, generator):
    """Bit for bit: words in front of or behind other padding, and beside other rows."""
    noise = jax.random.normal(jax.random.key(5), (2, *setting.models.unified.images.shape_of(4)))
    alone = drawn_of(setting, ids(generator, CAPTION, CAPTION), noise)
    beside = drawn_of(setting, ids(generator, CAPTION, "paint it green"), noise)
    np.testing.assert_array_equal(alone[0], beside[0])
    assert np.abs(alone[1] - beside[1]).max() > 1e-4


def test_pictures_are_painted_as_the_codec_paints_them(setting):
    latents = jax.random.normal(jax.random.key(6), (2, 4, 8))
    paint = jax.jit(partial(rollouts.paint, setting.models, steps=2))
    one = paint(setting.params, latents, setting.grids, jax.random.key(7))
    assert one.shape == (2, 4, 768) and np.isfinite(one).all()
    other = paint(setting.params, latents, setting.grids, jax.random.key(8))
    assert (np.asarray(one) != np.asarray(other)).any()
