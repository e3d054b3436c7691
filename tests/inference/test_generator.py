"""`Generator` as its users meet it: batches, seeds, plans, conversations, sizes."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.segments import DRAWN, Image, Text
from tests.data.samples import picture, tokenizer
from tests.tiny import tiny_config
from unicom_jax.inference import engine
from unicom_jax.inference.generator import Generator
from unicom_jax.inference.picture_encoder import PictureEncoder
from unicom_jax.inference.reconstructor import Reconstructor

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
    options = {"temperature": 1.0, "top_p": 0.9, "top_k": 50, "seed": 3}
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


def test_a_request_in_parts_is_drawn_as_a_whole(generator, drawn):
    """So an evaluation gets the same pictures whatever its batch size is."""
    parts = [generator.draw(PROMPTS[i : i + 1], seed=5, first=i)[0] for i in range(3)]
    assert all(close(a.image, b.image) for a, b in zip(drawn, parts, strict=True))
    options = {"temperature": 1.0, "seed": 3}
    whole = generator.answer(PICTURES, QUESTIONS, **options)
    last = generator.answer(PICTURES[2], QUESTIONS[2], first=2, **options)
    assert last == whole[2:]
    one, other = (generator.reconstruct(PICTURES[1], first=place)[0] for place in (1, 0))
    assert close(generator.reconstruct(PICTURES)[1], one) and not close(one, other)


def test_a_string_is_one_prompt_and_a_picture_is_one_picture(generator):
    assert len(generator.draw("a red dot")) == 1
    assert len(generator.write("a red dot", max_tokens=2)) == 1
    assert len(generator.answer(PICTURES[0], "one?", max_tokens=2)) == 1
    assert len(generator.caption(PICTURES[0], max_tokens=2)) == 1
    assert len(generator.edit(PICTURES[0], "paint it green")) == 1
    assert len(generator.reconstruct(PICTURES[0])) == 1
    assert generator.features(PICTURES[0]).shape == (1, 32)
    with pytest.raises(ValueError, match="2 pictures but 3 questions"):
        generator.answer(PICTURES[:2], QUESTIONS)
    with pytest.raises(ValueError, match="2 pictures but 3 instructions"):
        generator.edit(PICTURES[:2], QUESTIONS)


def test_several_pictures_of_a_prompt_stand_side_by_side(generator, drawn):
    one, two, other, _ = generator.draw(PROMPTS[:2], count=2, seed=5)
    assert close(one.image, drawn[0].image) and not close(two.image, one.image)
    assert not close(other.image, one.image)
    with pytest.raises(ValueError, match="count is 0"):
        generator.paint(PROMPTS[:1], count=0)


def test_a_prompt_without_pictures_encodes_none(generator, monkeypatch):
    read, seen = engine.read, []

    def spy(models, params, batch, patches, *rest):
        seen.append(None if patches is None else patches.shape[:2])
        return read(models, params, batch, patches, *rest)

    monkeypatch.setattr(engine, "read", spy)
    generator.draw("a red dot")
    generator.edit(PICTURES[:2], "paint it green")  # two branches of two requests, one look each
    assert seen == [None, (2, 1)]


# ---- text as it is written ------------------------------------------------------------------


def test_pieces_of_text_make_up_the_answers(generator):
    heard = [""] * 3

    def hear(place, piece):
        assert piece
        heard[place] += piece

    assert generator.answer(PICTURES, QUESTIONS, on_text=hear) == heard
    assert heard == generator.answer(PICTURES, QUESTIONS)


def test_a_stop_string_ends_an_answer_and_is_not_part_of_it(generator):
    (whole,) = generator.answer(PICTURES[0], QUESTIONS[0], max_tokens=8)
    stop = whole[3:5]
    before, heard = whole.split(stop)[0].rstrip(), []
    options = {"max_tokens": 8, "on_text": lambda _, piece: heard.append(piece)}
    assert generator.answer(PICTURES[0], QUESTIONS[0], stop=stop, **options) == [before]
    assert "".join(heard).rstrip() == before
    with pytest.raises(ValueError, match="a stop string is empty"):
        generator.write("a red dot", stop="")


def test_a_longest_answer_of_another_length_is_no_other_program(generator):
    generator.write("a red dot", max_tokens=3)
    before = engine.write._cache_size()
    lengths = [len(generator.tokens("a red dot", max_tokens=limit)[0]) for limit in (2, 5, 9)]
    for top_p in (0.5, 0.9):
        for temperature in (0.5, 1.0):
            generator.write("a red dot", temperature=temperature, top_p=top_p)
    assert engine.write._cache_size() - before <= 1  # sampling from a part of the tokens
    assert lengths == [2, 5, 9]
    with pytest.raises(ValueError, match="max_tokens is 0"):
        generator.write("a red dot", max_tokens=0)


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


def test_a_conversation_continues_after_its_pictures(generator):
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

    def pixels(latents, places, grids, *rest):
        return [np.zeros((rows * 16, cols * 16, 3), np.uint8) for rows, cols in grids]

    monkeypatch.setattr(generator, "_draw", lambda *rest: None)
    monkeypatch.setattr(generator.codec, "pixels", pixels)
    sources = [picture(0, 32, 64), picture(1, 64, 32), picture(2, 320, 640)]
    edited = generator.edit(sources, ["paint it green"] * 3)
    assert [one.shape for one in edited] == [(32, 64, 3), (64, 32, 3), (32, 64, 3)]


def test_a_model_whose_head_adds_no_details_draws_in_one_way(generator):
    assert generator.without_details is None


def test_an_autoencoder_alone_offers_nothing_that_takes_a_unified_model():
    shared = {name for name in dir(Reconstructor) if not name.startswith("_")} & {*dir(Generator)}
    same = {"load", "untrained", "encoder", "prepared", "reconstruct", "batch_size"}
    assert shared == same
    config = tiny_config(data__vocab_size=300)
    alone = Reconstructor.untrained(config)
    assert set(alone.params) == {"codec"} and alone.encoder is None
    assert [one.shape for one in alone.reconstruct(PICTURES[:2])] == 2 * [(32, 32, 3)]


def test_reconstructions_and_features_belong_to_their_pictures(generator):
    painted = generator.reconstruct(PICTURES)
    assert len(painted) == 3 and painted[0].shape == (32, 32, 3) and painted[0].dtype == np.uint8
    features = generator.features(PICTURES)
    assert features.shape == (3, 32) and np.isfinite(features).all()
    assert np.abs(features[0] - features[1]).max() > 1e-3


def test_a_size_that_the_model_never_saw_is_refused(generator):
    with pytest.raises(ValueError, match=r"size \(64, 32\): this model was trained at \(32, 32\)"):
        generator.draw(PROMPTS[:1], size=(64, 32))


def test_an_encoder_is_recognised_by_its_weights():
    def fingerprint(**weights):
        tree = {"vision": {name: np.float32(value) for name, value in weights.items()}}
        return PictureEncoder(None, tree, None, batch_size=1).fingerprint

    assert fingerprint(a=[1, 2], b=[3]) == fingerprint(b=[3], a=[1, 2])
    assert len({fingerprint(a=[1, 2]), fingerprint(a=[1, 3]), fingerprint(b=[1, 2])}) == 3
