"""`Generator` as its users meet it: batches, seeds, plans, conversations, sizes."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.sequences.tasks import DRAWN, Image, Text
from tests.data.samples import picture, tokenizer
from tests.tiny import tiny_config
from unicom_jax.inference.generator import Generator

PROMPTS = ["a red dot", "a large blue square on the left of a red dot", "a dot"]
PICTURES = [picture(seed, 32, 32) for seed in range(3)]
QUESTIONS = ["how many dots are there?", "one?", "think of a large blue square on the left of it"]


@pytest.fixture(scope="module")
def one_by_one(generator):
    """The same model with batches of one."""
    alone = Generator(generator.config, generator.tokenizer, generator.params)
    alone.batch_size = 1
    return alone


def close(left: np.ndarray, right: np.ndarray) -> bool:
    """Equal up to the rounding of a byte, as sums of another batch size may differ in their last
    bit."""
    return bool(np.abs(left.astype(int) - right.astype(int)).max() <= 1)


@pytest.fixture(scope="module")
def drawn(generator):
    return generator.draw(PROMPTS, seed=5)


def test_ragged_prompts_in_a_batch_are_answered_as_one_by_one(generator, one_by_one):
    answers = generator.answer(PICTURES, QUESTIONS)
    assert answers == one_by_one.answer(PICTURES, QUESTIONS)
    assert len(set(answers)) > 1


def test_sampled_words_do_not_depend_on_the_batch_size(generator, one_by_one):
    options = {"temperature": 1.0, "top_p": 0.9, "seed": 3}
    answers = generator.answer(PICTURES, QUESTIONS, **options)
    assert answers == one_by_one.answer(PICTURES, QUESTIONS, **options)
    assert answers != generator.answer(PICTURES, QUESTIONS, **{**options, "seed": 4})


def test_the_same_seed_draws_the_same_pictures_whatever_the_batch_size(
    generator, one_by_one, drawn
):
    again = one_by_one.draw(PROMPTS, seed=5)
    assert all(close(a.image, b.image) for a, b in zip(drawn, again, strict=True))
    other = generator.draw(PROMPTS, seed=6)
    assert not any(close(a.image, b.image) for a, b in zip(drawn, other, strict=True))


def test_each_place_of_a_request_has_noise_of_its_own(generator):
    first, second = generator.draw([PROMPTS[0]] * 2, seed=5)
    assert not close(first.image, second.image)


def test_the_prompt_is_obeyed(generator, drawn):
    other = generator.draw(["paint it green", *PROMPTS[1:]], seed=5)
    assert not close(drawn[0].image, other[0].image)
    assert close(drawn[1].image, other[1].image)


# ---- plans and conversations --------------------------------------------------------------


def test_a_plan_is_written_first_and_the_picture_is_drawn_by_it(generator, drawn, monkeypatch):
    asked = []

    def plan(conversations, **options):
        asked.append(options["opening"])
        return ["a dot first</think> and more"] * len(conversations)

    monkeypatch.setattr(generator, "write", plan)
    planned = generator.draw(PROMPTS, think=True, seed=5)
    assert asked == ["<think>"]
    assert [one.thought for one in planned] == ["a dot first"] * 3
    assert not close(planned[0].image, drawn[0].image)
    assert not drawn[0].thought


def test_thinking_runs_from_end_to_end(generator):
    (one,) = generator.draw(PROMPTS[:1], think=True, max_tokens=3)
    assert one.image.shape == (32, 32, 3) and isinstance(one.thought, str)


def test_a_response_is_words_and_pictures_until_the_turn_ends(generator, monkeypatch):
    contexts, script = [], [("here it is", True), ("one dot", False)]

    def write(conversations, *rest):
        contexts.append(list(conversations[0]))
        return [script[len(contexts) - 1]]

    monkeypatch.setattr(generator, "_write", write)
    asked = [Text("draw a dot and count it")]
    first, image, last = generator.respond(asked)
    assert first == Text("here it is", supervised=True)
    assert last == Text("one dot", supervised=True)
    assert isinstance(image, Image) and image.role == DRAWN and image.pixels.shape == (32, 32, 3)
    assert contexts == [asked, [*asked, first, image]]


def test_a_response_draws_no_more_pictures_than_allowed(generator, monkeypatch):
    monkeypatch.setattr(generator, "_write", lambda *rest: [("", True)])
    response = generator.respond([Text("a red dot")], max_images=2)
    assert [type(segment) for segment in response] == [Image, Image]


def test_a_conversation_goes_on_behind_its_pictures(generator):
    said = [Text("a red dot"), Image(PICTURES[0], DRAWN), Text("how many dots are there?")]
    plain = generator.write([said])
    other = generator.write([[said[0], Image(PICTURES[1], DRAWN), said[2]]])
    assert len(plain) == 1 and plain != other


# ---- pictures -----------------------------------------------------------------------------


def test_an_edit_depends_on_its_own_picture_only(generator):
    instructions = ["paint it green"] * 2
    before = generator.edit(PICTURES[:2], instructions)
    after = generator.edit([PICTURES[2], PICTURES[1]], instructions)  # same noise, another source
    assert not close(before[0], after[0])
    assert close(before[1], after[1])


def test_an_edit_has_the_size_of_its_picture_as_the_encoder_sees_it(monkeypatch):
    config = tiny_config(
        data__vocab_size=tokenizer().vocab_size,
        data__policy="naflex",
        data__max_tokens=8,
        encoder__naflex=True,
    )
    generator = Generator(config, tokenizer(), {})

    def paint(conversations, places, grid, *rest):
        return [np.zeros((grid[0] * 16, grid[1] * 16, 3), np.uint8)] * len(places)

    monkeypatch.setattr(generator, "_paint", paint)
    sources = [picture(0, 32, 64), picture(1, 64, 32), picture(2, 320, 640)]
    edited = generator.edit(sources, ["paint it green"] * 3)
    assert [one.shape for one in edited] == [(32, 64, 3), (64, 32, 3), (32, 64, 3)]


def test_reconstructions_and_features_belong_to_their_pictures(generator):
    painted = generator.reconstruct(PICTURES)
    assert len(painted) == 3 and painted[0].shape == (32, 32, 3) and painted[0].dtype == np.uint8
    features = generator.features(PICTURES)
    assert features.shape == (3, 32) and np.isfinite(features).all()
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_a_size_that_the_model_never_saw_is_refused(generator):
    with pytest.raises(ValueError, match=r"size \(64, 32\): this model was trained at \(32, 32\)"):
        generator.draw(PROMPTS[:1], size=(64, 32))
