"""Where the slots of a document stand, and which slots each of them sees."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_pipelines.images import ImagePolicy
from data_pipelines.segments import Image, Text
from data_pipelines.sequences.document import drawing_slots
from data_pipelines.sequences.packing import PackingConfig, pack_row
from data_pipelines.sequences.sequence import VISION_START, build_prefix
from tests.data.samples import SMALL, picture, tokenizer
from tests.data.sequences.spelled import APART, DOT, DRAW, LOOK, PAINT, RED, write
from unicom_jax.core.batch import Role


def test_text_positions_count_and_an_image_takes_as_many_as_it_has_tokens():
    document = write(LOOK, RED, DOT)
    text = document.positions[document.roles == Role.TEXT]
    assert text[:, 0].tolist() == [0, 1, *range(6, len(document))]
    np.testing.assert_array_equal(text[:, 0], text[:, 1])
    assert document.next_position == len(document)


def test_image_positions_follow_the_generalised_rotary_formula():
    wide = dataclasses.replace(SMALL, images=ImagePolicy("naflex", max_tokens=6))
    document = write(Image(picture(4, 8, 12)), RED, DOT, config=wide)
    rows, cols = document.grids[0]
    start = 2
    expected = [
        (start + (rows * cols - rows) // 2 + row, start + (rows * cols - cols) // 2 + col)
        for row in range(rows)
        for col in range(cols)
    ]
    assert (rows, cols) == (2, 3)
    assert document.positions[document.roles == Role.UNDERSTAND].tolist() == [*map(list, expected)]


def test_with_plain_positions_every_slot_of_a_document_counts_one_further():
    config = dataclasses.replace(SMALL, image_positions="plain")
    for segments in ((LOOK, RED, DOT), (PAINT, RED, DRAW), (LOOK, LOOK, RED, DOT), (RED, DRAW)):
        document = write(*segments, config=config)
        count = np.arange(len(document))
        np.testing.assert_array_equal(document.positions, np.stack([count, count], axis=-1))
        plain = dataclasses.replace(document, positions=None)
        usual = dataclasses.replace(write(*segments), positions=None)
        np.testing.assert_equal(dataclasses.asdict(plain), dataclasses.asdict(usual))


def test_a_noisy_copy_has_the_positions_of_its_place():
    document = write(RED, DRAW, RED, DRAW)
    clean, noisy = (document.positions[document.roles == role] for role in (3, 4))
    np.testing.assert_array_equal(noisy[:4], clean)
    alone = write(RED, DRAW)
    np.testing.assert_array_equal(alone.positions[alone.roles == Role.NOISY], clean)


def test_with_plain_positions_a_noisy_copy_stands_where_the_clean_image_does():
    config = dataclasses.replace(SMALL, image_positions="plain")
    document = write(RED, DRAW, RED, DOT, config=config)
    clean, noisy = (document.positions[document.roles == role] for role in (Role.CLEAN, Role.NOISY))
    np.testing.assert_array_equal(clean, noisy)


def test_two_streams_of_one_image_are_one_block_at_one_place():
    config = dataclasses.replace(SMALL, understanding="sequence_concat")
    document = write(LOOK, RED, DOT, config=config)
    features, latents = (document.roles == role for role in (Role.UNDERSTAND, Role.CLEAN))
    np.testing.assert_array_equal(document.positions[features], document.positions[latents])
    assert set(document.mask.context_stop[features | latents]) == {10}
    assert document.positions[10].tolist() == [6, 6]  # the text behind continues as after one image


@pytest.mark.parametrize("segments", [(LOOK, LOOK, RED, DOT), (PAINT, RED, DRAW), (RED, DOT, DRAW)])
def test_the_mask_is_causal_or_within_one_run_of_image_slots(segments):
    """Cheers, arXiv:2603.12793: lower-triangular OR same contiguous image run, AND valid."""
    row = pack_row([write(*segments)], PackingConfig(slots=64, images=2, window_rows=1), SMALL)
    slot, image = np.arange(64), row.roles > Role.TEXT
    starts = image & ~np.roll(image, 1)
    run = np.where(image, np.cumsum(starts), -1 - slot)  # words are runs of their own
    valid = row.roles != Role.PAD
    wanted = (slot <= slot[:, None]) | (run == run[:, None])
    wanted &= valid & valid[:, None]
    mask = row.mask
    seen = (mask.context_start[:, None] <= slot) & (slot < mask.context_stop[:, None])
    seen |= (mask.span_start[:, None] <= slot) & (slot < mask.span_stop[:, None])
    np.testing.assert_array_equal(seen, wanted)


def test_noisy_tokens_see_the_same_whether_a_clean_copy_follows_or_not():
    alone, followed = write(RED, DRAW), write(RED, DRAW, DOT)
    here, there = alone.roles == Role.NOISY, followed.roles == Role.NOISY
    np.testing.assert_array_equal(alone.mask.context_stop[here], followed.mask.context_stop[there])


@pytest.mark.parametrize("segments", [(RED, DRAW), (RED, DRAW, DOT)])
def test_several_noisy_copies_see_what_the_first_sees_and_not_each_other(segments):
    once = write(*segments)
    thrice = write(*segments, config=dataclasses.replace(SMALL, noisy_copies=3))
    np.testing.assert_array_equal(thrice.tokens[: len(once)], once.tokens)
    noisy = np.flatnonzero(thrice.roles == Role.NOISY).reshape(3, 4)
    for field in ("context_start", "context_stop"):
        assert len(set(getattr(thrice.mask, field)[noisy.ravel()])) == 1
    for copy in noisy:
        assert set(thrice.mask.span_start[copy]) == {copy[0]}
        assert set(thrice.mask.span_stop[copy]) == {copy[-1] + 1}
        np.testing.assert_array_equal(thrice.positions[copy], thrice.positions[noisy[0]])
    assert thrice.image_index[noisy[:, 0]].tolist() == [0, 1, 2]  # each has noise of its own
    assert thrice.draws == (0, 0, 0) and len(thrice.patches) == 1  # and the picture is there once


def seen(document, slots):
    """For each slot what it sees: tokens, roles and places of other slots, in their order."""
    facts = np.c_[document.tokens, document.roles, document.image_token, document.positions]
    index, mask = np.arange(len(document)), document.mask
    for i in slots:
        context = (mask.context_start[i] <= index) & (index < mask.context_stop[i])
        span = (mask.span_start[i] <= index) & (index < mask.span_stop[i])
        yield facts[context | span].tolist()


def test_a_turn_apart_is_read_as_if_it_were_the_only_one():
    alone = write(LOOK, RED, DOT)
    apart = write(LOOK, Text("two dots", apart=True), DOT, APART, DOT)
    turn = np.arange(7, len(alone))  # behind the turn's mark and the picture
    there = turn + len(apart) - len(alone)
    for field in ("tokens", "positions", "targets", "target_weights"):
        np.testing.assert_array_equal(getattr(apart, field)[there], getattr(alone, field)[turn])
    assert list(seen(apart, there)) == list(seen(alone, turn))
    assert apart.next_position == alone.next_position


@pytest.mark.parametrize("kind", ["grid", "plain"])
def test_drawing_slots_are_those_of_the_training_document(kind):
    config = dataclasses.replace(SMALL, image_positions=kind)
    document = write(RED, DRAW, config=config)
    prefix = build_prefix([RED], tokenizer(), config, VISION_START)
    slots = drawing_slots(len(prefix), prefix.next_position, 2, 2, kind=kind)
    noisy = document.roles == Role.NOISY
    np.testing.assert_array_equal(slots.positions, document.positions[noisy])
    for name in ("context_start", "context_stop", "span_start", "span_stop"):
        np.testing.assert_array_equal(
            getattr(slots.mask, name), getattr(document.mask, name)[noisy]
        )


def test_drawing_slots_behind_padding_see_the_prefix_and_themselves():
    slots = drawing_slots(5, 5, 1, 2, slot=32)
    assert [
        getattr(slots.mask, name).tolist()
        for name in ("context_start", "context_stop", "span_start", "span_stop")
    ] == [[0, 0], [5, 5], [32, 32], [34, 34]]
