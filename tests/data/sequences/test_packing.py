"""Packing and the mask, against a reference that works slot by slot from first principles."""

from __future__ import annotations

import dataclasses

import chex
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.images import ImagePolicy
from data_pipelines.segments import DRAWN, SOURCE, UNDERSTOOD, Image, Text
from data_pipelines.sequences.document import MASK_FIELDS
from data_pipelines.sequences.packing import (
    OverlongDocument,
    PackingConfig,
    assign,
    balanced,
    check_fits,
    documents_per_window,
    pack_row,
    pack_rows,
    stack_rows,
)
from data_pipelines.sequences.sequence import build_document
from tests.data.samples import SMALL, picture, tokenizer
from unicom_jax.core.batch import Role

ROOM = PackingConfig(slots=400, images=40, window_rows=1)
WORDS = st.sampled_from(["", "a", "a red dot", "how many dots are there?"])
SIZES = st.sampled_from([(4, 4), (8, 4), (4, 12), (8, 8)])


@st.composite
def pictures(draw, roles):
    return Image(picture(draw(st.integers(0, 99)), *draw(SIZES)), draw(st.sampled_from(roles)))


prompts = st.lists(st.builds(Text, WORDS) | pictures([UNDERSTOOD, SOURCE]), min_size=1, max_size=3)
responses = st.lists(
    st.builds(Text, st.just("one"), st.just(True)) | pictures([DRAWN]), min_size=1, max_size=3
)
turns = st.tuples(prompts, responses).map(lambda turn: [*turn[0], *turn[1]])
conversations = st.lists(turns, min_size=1, max_size=2).map(lambda parts: sum(parts, []))
configs = st.builds(
    lambda understanding, source: dataclasses.replace(
        SMALL,
        images=ImagePolicy("naflex", max_tokens=4),
        understanding=understanding,
        edit_source=source,
    ),
    st.sampled_from(["features", "sequence_concat"]),
    st.sampled_from(["latents", "features", "both"]),
)


@st.composite
def packed(draw):
    """A config, documents, and the row they are packed into."""
    config = draw(configs)
    written = [
        build_document(segments, tokenizer(), config, f"dots/{i}")
        for i, segments in enumerate(draw(st.lists(conversations, min_size=1, max_size=3)))
    ]
    return config, written, pack_row(written, ROOM, config)


def visible(mask):
    """(S, S) bool of the intervals: the definition in `MaskIntervals`."""
    key = np.arange(len(mask.context_start))
    start, stop, span, end = (np.asarray(getattr(mask, name))[:, None] for name in MASK_FIELDS)
    return ((start <= key) & (key < stop)) | ((span <= key) & (key < end))


def reference(row, lengths):
    """(S, S) bool: who sees whom, from what each slot is.

    Nobody sees pads or other documents. Noisy slots are seen by those of their own draw alone.
    Otherwise one sees what comes before one's place, oneself, and all of one's own image. The place
    of a noisy slot is that of its clean copy, or its own image's first slot.
    """
    slots = len(row.tokens)
    document = np.repeat(np.arange(len(lengths)), lengths)
    roles, draw = row.roles, row.image_index
    image = np.where(roles == Role.NOISY, row.draws[np.where(roles == Role.NOISY, draw, 0)], draw)
    seen = np.zeros((slots, slots), bool)
    for i in range(len(document)):
        own = [j for j in range(len(document)) if roles[j] > Role.TEXT and image[j] == image[i]]
        clean = [j for j in own if roles[j] == Role.CLEAN]
        for j in range(len(document)):
            if document[i] != document[j]:
                continue
            if roles[i] == Role.TEXT:
                seen[i, j] = j <= i and roles[j] != Role.NOISY
            elif roles[i] == Role.NOISY:
                noisy = [k for k in own if roles[k] == Role.NOISY and draw[k] == draw[i]]
                place = min(clean or noisy)
                seen[i, j] = j in noisy or (j < place and roles[j] != Role.NOISY)
            else:
                block = j in own and roles[j] != Role.NOISY
                seen[i, j] = block or (j < i and roles[j] != Role.NOISY)
    return seen


@settings(max_examples=30, deadline=None)
@given(packed())
def test_the_mask_of_a_packed_row_is_the_one_from_first_principles(case):
    _, written, row = case
    np.testing.assert_array_equal(visible(row.mask), reference(row, [len(d) for d in written]))


@settings(max_examples=40, deadline=None)
@given(packed())
def test_a_packed_row_holds_every_document_exactly(case):
    config, written, row = case
    start = image = draw = 0
    for document in written:
        here = slice(start, start + len(document))
        for name in ("tokens", "positions", "roles", "targets", "target_weights", "image_token"):
            np.testing.assert_array_equal(getattr(row, name)[here], getattr(document, name))
        np.testing.assert_array_equal(visible(row.mask)[here, here], visible(document.mask))
        for role in Role:
            first = {Role.NOISY: draw, Role.TEXT: 0}.get(role, image)
            of = document.roles == role
            found = row.image_index[here][of]
            np.testing.assert_array_equal(found, document.image_index[of] + first)
        count = len(document.draws)
        drawn = np.array(document.draws, int) + image
        np.testing.assert_array_equal(row.draws[draw : draw + count], drawn)
        draw += count
        for patches, grid in zip(document.patches, document.grids, strict=True):
            assert tuple(row.grids[image]) == grid
            np.testing.assert_array_equal(row.patches[image, : len(patches)], patches)
            assert not row.patches[image, len(patches) :].any()
            image += 1
        start += len(document)
    assert not row.roles[start:].any() and not row.target_weights[start:].any()
    assert not row.grids[image:].any() and np.all(row.draws[draw:] == -1)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.integers(0, 3), st.integers(0, 2), st.integers(0, 3)),
        max_size=30,
    ),
    st.integers(1, 5),
)
def test_every_document_is_placed_once_or_left_over_and_rows_keep_their_limits(sizes, rows):
    config = PackingConfig(slots=20, images=4, window_rows=rows, draws=2, views=4)
    placed, left_over = assign(sizes, config)
    assert len(placed) == rows
    assert sorted([*sum(placed, []), *left_over]) == list(range(len(sizes)))
    for row in placed:
        assert np.all(np.sum([sizes[i] for i in row] or [(0, 0, 0, 0)], axis=0) <= config.room)
    for i in left_over:  # and they really did not fit
        for row in placed:
            assert np.any(np.sum([sizes[j] for j in (*row, i)], axis=0) > config.room)


def test_the_longest_documents_are_placed_first():
    placed, left_over = assign(
        [(slots, 0, 0, 0) for slots in (4, 10, 9, 3, 8)], PackingConfig(20, 1, window_rows=1)
    )
    assert placed == [[1, 2]] and left_over == [0, 3, 4]


@given(st.lists(st.integers(0, 9), max_size=20))
def test_an_order_of_rows_for_balance_has_each_row_once(work):
    assert sorted(balanced(work)) == list(range(len(work)))


@given(
    st.sampled_from([2, 4, 8, 16]).flatmap(
        lambda n: st.lists(st.integers(0, 99), min_size=n, max_size=n)
    )
)
def test_runs_of_balanced_rows_differ_less_the_longer_they_are(work):
    ordered, spread = np.array(work)[balanced(work)], np.ptp(work)
    for run in (2, 4, 8, 16)[: len(work).bit_length() - 1]:
        sums = ordered.reshape(-1, run).sum(-1)
        assert np.ptp(sums) <= spread
        spread = np.ptp(sums)


@given(st.lists(st.integers(0, 99), min_size=8, max_size=8))
def test_no_other_pairing_of_rows_has_a_lighter_heaviest_pair(work):
    def pairings(rows):
        if not rows:
            yield []
        for other in rows[1:]:
            for rest in pairings([row for row in rows[1:] if row != other]):
                yield [work[rows[0]] + work[other], *rest]

    least = min(max(sums) for sums in pairings(list(range(8))))
    assert np.array(work)[balanced(work)].reshape(-1, 2).sum(-1).max() == least


def test_a_window_gets_as_many_documents_as_fit_nearly_always():
    rng = np.random.default_rng(0)
    sizes = [(int(slots), 1, 1, 1) for slots in rng.integers(20, 60, 300)]
    config = PackingConfig(slots=256, images=20, window_rows=8)
    count = documents_per_window(sizes, config)
    left_over = [
        len(assign([sizes[i] for i in rng.integers(300, size=count)], config)[1])
        for _ in range(100)
    ]
    assert sum(left_over) / (100 * count) < 0.01
    assert count * 39.5 / (8 * 256) > 0.85


def test_the_places_for_images_draws_and_views_bound_a_window_too():
    config = PackingConfig(slots=256, images=2, window_rows=4)
    assert documents_per_window([(10, 1, 0, 1)] * 50, config) == 8
    config = PackingConfig(slots=256, images=9, window_rows=4, draws=3)
    assert documents_per_window([(10, 1, 3, 3)] * 50, config) == 4
    config = PackingConfig(slots=256, images=9, window_rows=4, draws=9, views=6)
    assert documents_per_window([(10, 1, 3, 3)] * 50, config) == 8


def test_an_overlong_document_is_named_with_its_lengths_and_the_fix():
    document = build_document([Text("a red dot " * 9, True)], tokenizer(), SMALL, "dots/3")
    message = (
        rf"'dots/3' takes {len(document)} slots, but a row holds at most 8; raise sequence_length"
    )
    with pytest.raises(OverlongDocument, match=message):
        check_fits(document, PackingConfig(slots=8, images=1))


def test_too_many_images_are_named_too():
    segments = [Image(picture(1)), Image(picture(2)), Text("one", True)]
    document = build_document(segments, tokenizer(), SMALL, "dots/4")
    with pytest.raises(OverlongDocument, match="'dots/4' takes 2 images, .* a row holds at most 1"):
        check_fits(document, PackingConfig(slots=100, images=1))


def test_too_many_draws_are_named_too():
    config = dataclasses.replace(SMALL, noisy_copies=3)
    segments = [Text("a red dot"), Image(picture(1), DRAWN)]
    document = build_document(segments, tokenizer(), config, "dots/5")
    assert document.size[1:] == (1, 3, 3)
    with pytest.raises(OverlongDocument, match="takes 3 draws.* raise draws_per_row"):
        check_fits(document, PackingConfig(slots=100, images=2))


def test_too_many_views_are_named_too():
    segments = [Image(picture(1), SOURCE), Text("paint it red"), Image(picture(2), DRAWN)]
    document = build_document(segments, tokenizer(), SMALL, "dots/6")
    assert document.size[1:] == (2, 1, 2)  # the target stands in the row as a draw alone
    with pytest.raises(OverlongDocument, match="takes 2 views.* raise views_per_row"):
        check_fits(document, PackingConfig(slots=100, images=2, views=1))


def test_a_row_without_pictures_has_the_same_shape():
    document = build_document([Text("a red dot", True)], tokenizer(), SMALL)
    row = pack_row([document], PackingConfig(slots=16, images=3), SMALL)
    assert row.patches.shape == (3, 4, 48) and row.patches.dtype == np.uint8


def test_stacked_rows_are_a_batch():
    document = build_document([Text("a"), Image(picture(5), DRAWN)], tokenizer(), SMALL)
    config = PackingConfig(slots=16, images=2)
    batch = pack_rows([[document], []], config, SMALL)
    assert batch.tokens.shape == (2, 16) and batch.positions.shape == (2, 16, 2)
    assert batch.mask.span_stop.shape == (2, 16) and batch.patches.shape == (2, 2, 4, 48)
    assert not batch.roles[1].any()
    rows = [pack_row([document], config, SMALL), pack_row([], config, SMALL)]
    chex.assert_trees_all_equal(stack_rows(rows), batch, strict=True)


def test_a_row_of_nothing_is_refused():
    with pytest.raises(ValueError, match="packing slots must be at least 1"):
        PackingConfig(slots=0, images=1)


# ---- Cheers' mask -----------------------------------------------------------------------------


def papers_mask(row, lengths, dummies):
    """(S, S) bool as arXiv 2603.12793 has it, slot by slot: what is before oneself, or within the
    same run of image slots, read and drawn alike; of the same document; pads see nothing here."""
    slots, pictured = len(row.tokens), row.roles > Role.TEXT
    document = np.repeat(np.arange(len(lengths)), lengths)
    seen = np.zeros((slots, slots), bool)
    for i in range(len(document)):
        for j in range(len(document)):
            between = slice(min(i, j), max(i, j) + 1)
            run = pictured[between].all() and document[i] not in dummies
            seen[i, j] = document[i] == document[j] and (j <= i or run)
    return seen


def test_folded_pictures_see_what_they_see_in_cheers():
    config = dataclasses.replace(
        SMALL,
        images=ImagePolicy("naflex", max_tokens=32),
        fold=2,
        image_positions="plain",
        dummies=True,
    )
    look, change, drawn = (
        Image(picture(seed, 16, 32), role) for seed, role in enumerate((UNDERSTOOD, SOURCE, DRAWN))
    )
    ask, said = Text("a red dot"), Text("a dot", supervised=True)
    more = Image(picture(3, 16, 32))
    segments = [[ask, drawn], [look, more, ask, said], [change, ask, drawn], [said], [ask, said]]
    written = [build_document(each, tokenizer(), config) for each in segments]
    assert [len(document.grids) for document in written] == [1, 2, 2, 1, 1]
    row = pack_row(written, PackingConfig(slots=400, images=10, window_rows=1), config)
    lengths = [len(document) for document in written]
    np.testing.assert_array_equal(visible(row.mask), papers_mask(row, lengths, dummies=(3, 4)))
    for document in written[:3]:  # each of several slots
        assert np.count_nonzero(document.image_token) > 0
