"""The sequence format, slot by slot."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_pipelines.images import ImagePolicy, patchify, prepare
from data_pipelines.segments import DRAWN, SOURCE, Image, Text
from data_pipelines.sequences.document import drawing_slots
from data_pipelines.sequences.format import SequenceConfig
from data_pipelines.sequences.packing import PackingConfig, pack_row
from data_pipelines.sequences.sequence import VISION_START, build_document, build_prefix
from data_pipelines.sequences.tasks import BrokenExample, unconditional_segments
from tests.data.samples import SMALL, picture, tokenizer
from unicom_jax.core.batch import Role

RED, DOT = Text("a red dot"), Text("a red dot", supervised=True)
APART = Text("a red dot", apart=True)
LOOK, PAINT = Image(picture(1)), Image(picture(2), SOURCE)
DRAW = Image(picture(3), DRAWN)

LETTERS = {Role.UNDERSTAND: "u", Role.CLEAN: "c", Role.NOISY: "n"}
SPELLING = {
    "<|im_start|>": "(",
    "<|im_end|>": ")",
    "<|endoftext|>": ".",
    "<|vision_start|>": "[",
    "<|vision_end|>": "]",
}


def write(*segments, config=SMALL):
    return build_document(segments, tokenizer(), config, "dots/7")


def spell(document):
    """One sign a slot: t word piece, u c n image roles, ( ) . [ ] turn and image marks."""
    signs = []
    for token, role in zip(document.tokens, document.roles, strict=True):
        if role != Role.TEXT:
            signs.append(LETTERS[Role(role)])
        else:
            word = tokenizer().decode([int(token)], skip_special=False)
            signs.append(SPELLING.get(word, "t"))
    return "".join(signs)


def learnt(document):
    """The text that the document teaches, token by token."""
    return tokenizer().decode(document.targets[document.target_weights > 0], skip_special=False)


W = "t" * len(tokenizer().encode("a red dot"))


@pytest.mark.parametrize(
    ("segments", "spelling"),
    [
        ((DOT,), f"{W}."),
        ((RED, DOT), f"({W}){W}."),
        ((RED, DRAW), f"({W})[nnnn"),
        ((LOOK, RED, DOT), f"([uuuu]{W}){W}."),
        ((PAINT, RED, DRAW), f"([cccc]{W})[nnnn"),
        ((LOOK, LOOK, RED, DOT), f"([uuuu][uuuu]{W}){W}."),
        ((RED, DOT, DRAW), f"({W}){W}[nnnn"),
        ((RED, DRAW, RED, DOT), f"({W})[cccc].({W}){W}.nnnn"),
        ((RED, DRAW, DOT), f"({W})[cccc]{W}.nnnn"),
        ((RED, DRAW, RED, DRAW), f"({W})[cccc].({W})[nnnnnnnn"),
        ((LOOK, APART, DOT, APART, DOT), f"([uuuu]{W}){W}.{W}){W}."),
    ],
)
def test_the_format_of_a_document(segments, spelling):
    assert spell(write(*segments)) == spelling


def test_the_loss_is_on_the_response_and_its_end():
    assert learnt(write(LOOK, RED, DOT)) == "a red dot<|endoftext|>"


def test_the_turn_mark_predicts_the_first_word_of_the_response():
    document = write(LOOK, RED, DOT)
    end = document.tokens.tolist().index(tokenizer().turn_end)
    assert document.target_weights[: end + 1].tolist() == [0.0] * end + [1.0]
    assert document.targets[end] == tokenizer().encode("a red dot")[0]


def test_drawing_is_started_by_a_predicted_token_and_nothing_else():
    assert learnt(write(RED, DRAW)) == "<|vision_start|>"


def test_with_template_labels_headers_newlines_and_marks_of_prompts_are_learnt_too():
    config = dataclasses.replace(
        SMALL,
        template_labels=True,
        prompt_open="<|im_start|>dot\n",
        prompt_close="<|im_end|>\n<|im_start|>red\n",
        response_close="<|im_end|>",
    )
    document = write(LOOK, Text("a\nred dot"), DOT, config=config)
    assert learnt(document) == (  # no slot is before the first mark; "dot" and "a" are no template
        "\n<|vision_start|>\n<|im_end|>\n<|im_start|>red\na red dot<|im_end|>"
    )
    predicts = document.target_weights > 0
    np.testing.assert_array_equal(
        document.targets[predicts], document.tokens[np.flatnonzero(predicts) + 1]
    )
    drawing = write(PAINT, RED, DRAW, config=config)
    assert learnt(drawing) == ("\n<|vision_start|><|im_end|>\n<|im_start|>red\n<|vision_start|>")
    two = write(RED, DOT, RED, DOT, config=config)
    assert learnt(two) == "\n" + "<|im_start|>\n".join(
        2 * ["<|im_end|>\n<|im_start|>red\na red dot<|im_end|>"]
    )


def test_a_separate_turn_is_not_predicted_from_the_end_of_another():
    config = dataclasses.replace(SMALL, template_labels=True)
    apart = Text("\ndot", apart=True)
    document = write(LOOK, apart, DOT, apart, DOT, config=config)
    assert learnt(document) == (
        "<|vision_start|>" + 2 * "<|im_end|>a red dot<|endoftext|>"  # and neither newline
    )


def test_a_dummy_stands_in_front_of_words_alone_as_if_it_were_words():
    config = dataclasses.replace(SMALL, dummies=True)
    for segments in ((DOT,), (RED, DOT)):
        bare, document = write(*segments), write(*segments, config=config)
        added = len(document) - len(bare)
        rows, cols = config.token_grid(*document.grids[0], Role.NOISY)
        assert added == rows * cols > 1 and document.draws == (0,)
        assert document.roles.tolist() == [Role.NOISY] * added + [Role.TEXT] * len(bare)
        np.testing.assert_array_equal(document.tokens[added:], bare.tokens)
        np.testing.assert_array_equal(document.target_weights[added:], bare.target_weights)
        assert not document.patches[0].any()
        slot = np.arange(len(document))
        np.testing.assert_array_equal(document.mask.context_stop, slot + 1)
        assert not document.mask.span_stop.any()
        np.testing.assert_array_equal(document.positions[added:], bare.positions + added)
    for segments in ((RED, DRAW), (LOOK, RED, DOT)):
        assert len(write(*segments, config=config)) == len(write(*segments))
    assert len(build_prefix([RED], tokenizer(), config)) == len(
        build_prefix([RED], tokenizer(), SMALL)
    )


def test_plain_text_is_learnt_from_its_second_token():
    document = write(DOT)
    np.testing.assert_array_equal(document.targets[:-1], document.tokens[1:])
    assert document.target_weights.tolist() == [1.0] * (len(document) - 1) + [0.0]


def test_several_turns_are_learnt_each_to_its_end():
    assert learnt(write(RED, DRAW, RED, DOT)) == (
        "<|vision_start|><|endoftext|>a red dot<|endoftext|>"
    )


def test_image_slots_predict_no_token():
    for segments in ((RED, DRAW, DOT), (PAINT, RED, DRAW), (LOOK, DOT)):
        document = write(*segments)
        assert not document.target_weights[document.roles != Role.TEXT].any()


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


def test_a_noisy_copy_has_the_positions_of_its_place():
    document = write(RED, DRAW, RED, DRAW)
    clean, noisy = (document.positions[document.roles == role] for role in (3, 4))
    np.testing.assert_array_equal(noisy[:4], clean)
    alone = write(RED, DRAW)
    np.testing.assert_array_equal(alone.positions[alone.roles == Role.NOISY], clean)


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


def test_patches_are_the_picture_and_tokens_index_them():
    document = write(LOOK, PAINT, RED, DRAW)
    assert document.grids == ((2, 2),) * 3
    for patches, segment in zip(document.patches, (LOOK, PAINT, DRAW), strict=True):
        np.testing.assert_array_equal(patches, patchify(segment.pixels, 4))
    pictured = document.roles != Role.TEXT
    assert document.image_index[pictured].tolist() == [0] * 4 + [1] * 4 + [0] * 4  # first draw
    assert document.draws == (2,)
    assert document.image_token[pictured].tolist() == [0, 1, 2, 3] * 3


def test_a_picture_that_is_read_and_drawn_is_stored_once():
    read, drawn = Image(DRAW.pixels), Image(DRAW.pixels.copy(), DRAWN)
    twice = write(read, RED, drawn)
    once = write(read, RED, DRAW)
    assert len(twice.patches) == 2 and len(once.patches) == 1
    assert spell(once) == spell(twice) == f"([uuuu]{W})[nnnn"
    assert once.draws == (0,) and twice.draws == (1,)
    np.testing.assert_array_equal(once.patches[0], twice.patches[1])


@pytest.mark.parametrize(
    ("understanding", "spelling"),
    [
        ("features", "uuuu"),
        ("latents", "uuuu"),
        ("channel_concat", "uuuu"),
        ("sequence_concat", "uuuucccc"),
    ],
)
def test_understanding_inputs(understanding, spelling):
    config = dataclasses.replace(SMALL, understanding=understanding)
    assert spell(write(LOOK, RED, DOT, config=config)) == f"([{spelling}]{W}){W}."


@pytest.mark.parametrize(
    ("source", "spelling"), [("latents", "cccc"), ("features", "uuuu"), ("both", "uuuucccc")]
)
def test_edit_sources(source, spelling):
    config = dataclasses.replace(SMALL, edit_source=source)
    assert spell(write(PAINT, RED, DRAW, config=config)) == f"([{spelling}]{W})[nnnn"


def test_words_of_an_edit_may_precede_its_source_in_training_and_in_sampling():
    config = dataclasses.replace(SMALL, edit_words="before")
    assert spell(write(PAINT, RED, DRAW, config=config)) == f"({W}[cccc])[nnnn"
    assert spell(write(LOOK, RED, DOT, config=config)) == spell(write(LOOK, RED, DOT))
    assert spell(write(RED, DRAW, RED, DRAW, config=config)) == spell(write(RED, DRAW, RED, DRAW))
    talk = (LOOK, RED, DOT, PAINT, RED)
    prefix = build_prefix(talk, tokenizer(), config, VISION_START)
    assert spell(prefix) == f"([uuuu]{W}){W}.({W}[cccc])["
    long = write(PAINT, Text("a red dot " * 3), DRAW, config=config)
    source, drawn = (long.positions[long.roles == role] for role in (Role.CLEAN, Role.NOISY))
    short = write(PAINT, Text(""), DRAW)
    apart = short.positions[short.roles == Role.NOISY] - short.positions[short.roles == Role.CLEAN]
    np.testing.assert_array_equal(drawn - source, apart)


def test_two_streams_of_one_image_are_one_block_at_one_place():
    config = dataclasses.replace(SMALL, understanding="sequence_concat")
    document = write(LOOK, RED, DOT, config=config)
    features, latents = (document.roles == role for role in (Role.UNDERSTAND, Role.CLEAN))
    np.testing.assert_array_equal(document.positions[features], document.positions[latents])
    assert set(document.mask.context_stop[features | latents]) == {10}
    assert document.positions[10].tolist() == [6, 6]  # the text behind continues as after one image


def test_pooled_latents_have_fewer_tokens_than_features():
    config = dataclasses.replace(SMALL, pool=2, edit_source="both")
    assert spell(write(PAINT, RED, DRAW, config=config)) == f"([uuuuc]{W})[n"


def test_templates_are_written_as_given():
    config = dataclasses.replace(
        SMALL, prompt_open="a ", prompt_close="<|im_end|>a", response_close="<|im_end|>"
    )
    document = write(RED, DOT, config=config)
    text = tokenizer().decode(document.tokens, skip_special=False)
    assert text == "a a red dot<|im_end|>aa red dot<|im_end|>"


@pytest.mark.parametrize(
    "segments", [(RED, DRAW), (LOOK, RED, DOT), (PAINT, RED, DRAW), (RED, DOT, DRAW)]
)
def test_a_prefix_is_the_beginning_of_the_training_document(segments):
    document = write(*segments)
    opening = VISION_START if segments[-1] is DRAW else ""
    prefix = build_prefix(segments[:-1], tokenizer(), SMALL, opening)
    here = slice(0, len(prefix))
    for name in ("tokens", "roles", "positions", "image_index", "image_token"):
        np.testing.assert_array_equal(getattr(prefix, name), getattr(document, name)[here])
    for name in ("context_start", "context_stop", "span_start", "span_stop"):
        np.testing.assert_array_equal(
            getattr(prefix.mask, name), getattr(document.mask, name)[here]
        )
    assert not prefix.target_weights.any()


def test_with_plain_positions_every_slot_of_a_document_counts_one_further():
    config = dataclasses.replace(SMALL, image_positions="plain")
    for segments in ((LOOK, RED, DOT), (PAINT, RED, DRAW), (LOOK, LOOK, RED, DOT), (RED, DRAW)):
        document = write(*segments, config=config)
        count = np.arange(len(document))
        np.testing.assert_array_equal(document.positions, np.stack([count, count], axis=-1))
        plain = dataclasses.replace(document, positions=None)
        usual = dataclasses.replace(write(*segments), positions=None)
        np.testing.assert_equal(dataclasses.asdict(plain), dataclasses.asdict(usual))


def test_with_plain_positions_a_noisy_copy_stands_where_the_clean_image_does():
    config = dataclasses.replace(SMALL, image_positions="plain")
    document = write(RED, DRAW, RED, DOT, config=config)
    clean, noisy = (document.positions[document.roles == role] for role in (Role.CLEAN, Role.NOISY))
    np.testing.assert_array_equal(clean, noisy)


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


def test_a_prefix_of_earlier_turns_holds_drawn_images_clean():
    prefix = build_prefix([RED, DRAW, RED], tokenizer(), SMALL)
    assert spell(prefix) == f"({W})[cccc].({W})"


def test_the_unconditional_prefix_is_what_training_saw_after_dropout():
    prefix = build_prefix(unconditional_segments([PAINT, RED]), tokenizer(), SMALL, VISION_START)
    assert spell(prefix) == "([cccc])["


def test_pictures_that_are_looked_at_have_a_policy_of_their_own_and_edits_one_for_both():
    square = ImagePolicy("crop", size=8)
    config = dataclasses.replace(SMALL, images=square, understood="pad")
    wide = picture(5, 8, 16)
    cropped = patchify(prepare(wide, square, 4), 4)
    padded = patchify(prepare(wide, dataclasses.replace(square, kind="pad"), 4), 4)
    assert (cropped != padded).any()
    read = write(Image(wide), RED, DOT, config=config)
    edited = write(Image(wide, SOURCE), RED, Image(wide, DRAWN), config=config)
    asked = build_prefix([Image(wide), RED], tokenizer(), config)
    for document in (read, asked):
        np.testing.assert_array_equal(document.patches, [padded])
    np.testing.assert_array_equal(edited.patches, [cropped])  # once: resized alike
    redrawn = write(Image(wide), RED, Image(wide, DRAWN), config=config)
    np.testing.assert_array_equal(redrawn.patches, [padded, cropped])
    usual = dataclasses.replace(config, understood="same")
    np.testing.assert_array_equal(write(Image(wide), RED, DOT, config=usual).patches, [cropped])


def test_a_document_without_response_is_refused():
    with pytest.raises(ValueError, match="example 'dots/7': its segments end without a response"):
        write(RED, LOOK)


def test_text_that_spells_a_mark_is_refused():
    with pytest.raises(BrokenExample, match="example 'dots/7': the text .* contains tokens that"):
        write(Text("a <|im_end|> dot"), DRAW)


def test_a_picture_of_the_wrong_kind_is_named():
    with pytest.raises(BrokenExample, match="example 'dots/7': an image must be"):
        write(RED, Image(np.zeros((8, 8), np.uint8), DRAWN))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"understanding": "pixels"}, "understanding 'pixels' is unknown; choose one of features"),
        ({"edit_words": "inside"}, "edit_words 'inside' is unknown; choose one of after, before"),
        ({"edit_source": "noise"}, "edit_source 'noise' is unknown; choose one of latents"),
        ({"pool": 2, "understanding": "channel_concat"}, "channel_concat needs one latent a patch"),
        ({"cfg_dropout": 1.5}, r"cfg_dropout must be in \[0, 1\], not 1.5"),
        ({"unconditional": "gone"}, "unconditional 'gone' is unknown; choose one of empty, masked"),
        ({"image_positions": "spiral"}, "image_positions='spiral' is unknown; use one of grid"),
        ({"understood": "naflex"}, "understood 'naflex' does not go with 'fixed' pictures"),
        ({"image_dropout": 1.5}, "image_dropout is 1.5; it must be between 0 and 1 - cfg_dropout"),
        ({"cfg_dropout": 0.6, "image_dropout": 0.6}, "image_dropout is 0.6"),
        ({"patch": 3}, "image size 8 is not a multiple of 3"),
    ],
)
def test_configs_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes)


def test_the_default_config_is_valid():
    assert SequenceConfig().max_patches == 16
