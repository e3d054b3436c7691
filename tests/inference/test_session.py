"""Conversations turn by turn: what was read once is not read again, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipelines.segments import DRAWN, UNDERSTOOD, Image, Text
from data_pipelines.sequences.sequence import build_prefix
from tests.data.samples import picture
from unicom_jax.inference.session import Session, _shared, _slots_of

PICTURE, OTHER = picture(0, 32, 32), picture(1, 32, 32)


def slots(generator, segments, opening=""):
    document = build_prefix(segments, generator.tokenizer, generator.sequence, opening)
    return _slots_of(document)


def fresh(generator, said, **options):
    return generator.respond(said, max_images=1, **options)


def same(left, right) -> bool:
    """Equal segments; pictures up to the rounding of a byte."""
    return len(left) == len(right) and all(
        a == b
        if isinstance(a, Text)
        else a.role == b.role and np.abs(a.pixels.astype(int) - b.pixels).max() <= 1
        for a, b in zip(left, right, strict=True)
    )


@pytest.fixture
def turns(generator):
    """A conversation of three turns, and a session that has heard them."""
    session, said, answers = generator.session(), [], []
    asked = [[Image(PICTURE, UNDERSTOOD), Text("how many dots?")], [Text("and red ones?")]]
    for turn, words in enumerate([*asked, [Text("why?")]]):
        said += words
        before = session.slots_read
        answer = session.respond(said, max_images=1, max_tokens=4, seed=turn)
        answers.append((list(said), answer, session.slots_read - before))
        said += answer
    return session, answers


def test_a_turn_is_answered_as_if_everything_was_read_anew(generator, turns):
    for turn, (said, answer, _) in enumerate(turns[1]):
        assert same(answer, fresh(generator, said, max_tokens=4, seed=turn))


def test_a_turn_reads_its_own_slots_only(generator, turns):
    lengths = [
        len(build_prefix(said, generator.tokenizer, generator.sequence)) for said, *_ in turns[1]
    ]
    read = [count for *_, count in turns[1]]
    assert read[0] == lengths[0]
    assert read[1] <= lengths[1] - lengths[0] and read[2] <= lengths[2] - lengths[1]


def test_another_conversation_in_the_same_session_is_answered_alone(generator, turns):
    session, _ = turns
    said = [Image(OTHER, UNDERSTOOD), Text("how many dots?")]
    assert same(session.respond(said, max_images=1), fresh(generator, said))


def test_what_is_shared_ends_where_a_picture_differs(generator):
    words = [Text("how many dots?")]
    one, other = (slots(generator, [Image(x, UNDERSTOOD), *words]) for x in (PICTURE, OTHER))
    opening = slots(generator, [])
    assert _shared(one, one) == len(one) - 1  # the last slot's hidden state is asked for
    assert _shared(one, other) < 4 and len(opening) == 0
    longer = slots(generator, [Image(PICTURE, UNDERSTOOD), *words, Text("one", True), *words])
    assert _shared(one, longer) == len(one)


def test_a_picture_is_kept_as_a_whole_or_not_at_all(generator):
    """Its slots see each other, so half a picture in a cache would have seen another half."""
    held = slots(generator, [Image(PICTURE, UNDERSTOOD), Text("one")])
    pictured = np.flatnonzero(held[:, 1] == held[:, 1].max())
    wanted = held.copy()
    wanted[pictured[-1], 0] += 1
    assert _shared(held, wanted) == pictured[0]


def test_a_picture_is_drawn_behind_what_was_read(generator, monkeypatch):
    """The same picture as `paint` draws, and the next turn sees it."""
    monkeypatch.setattr(generator.words, "draws", lambda tokens: True)
    session = generator.session()
    said = [Image(PICTURE, UNDERSTOOD), Text("paint it green")]
    answer = session.respond(said, max_images=1, max_tokens=1, steps=2, seed=3)
    assert isinstance(answer[-1], Image) and answer[-1].role == DRAWN
    assert same(answer, fresh(generator, said, max_tokens=1, steps=2, seed=3))
    assert not same(answer, fresh(generator, said, max_tokens=1, steps=2, seed=4))
    again = session.respond([*said, *answer, Text("now blue")], max_images=1, max_tokens=1, steps=2)
    anew = fresh(generator, [*said, *answer, Text("now blue")], max_tokens=1, steps=2)
    assert same(again, anew)


def test_a_response_is_words_and_pictures_until_the_turn_ends(generator, monkeypatch):
    contexts, script = [], [("here it is", True), ("one dot", False)]

    def write(self, context, *rest):
        contexts.append(list(context))
        return np.array([len(contexts) - 1])

    monkeypatch.setattr(Session, "_write", write)
    monkeypatch.setattr(generator.words, "text", lambda tokens: script[int(tokens[0])][0])
    monkeypatch.setattr(generator.words, "draws", lambda tokens: script[int(tokens[0])][1])
    asked = [Text("draw a dot and count it")]
    first, image, last = generator.respond(asked)
    assert first == Text("here it is", supervised=True)
    assert last == Text("one dot", supervised=True)
    assert isinstance(image, Image) and image.role == DRAWN and image.pixels.shape == (32, 32, 3)
    assert contexts == [asked, [*asked, first, image]]


def test_a_response_draws_no_more_pictures_than_allowed(generator, monkeypatch):
    monkeypatch.setattr(generator.words, "draws", lambda tokens: True)
    monkeypatch.setattr(generator.words, "text", lambda tokens: "")
    response = generator.respond("a red dot", max_images=2, max_tokens=1, steps=1)
    assert [type(segment) for segment in response] == [Image, Image]
    assert (response[0].pixels != response[1].pixels).any()  # each with noise of its own


def test_words_of_a_response_are_heard_as_they_are_written(generator):
    heard = []
    answer = generator.respond(
        [Image(PICTURE, UNDERSTOOD), Text("how many?")],
        max_images=1, max_tokens=4, on_text=lambda part, piece: heard.append(piece),
    )  # fmt: skip
    assert "".join(heard) == answer[0].text and len(heard) > 1
