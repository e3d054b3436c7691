"""The sequence format, slot by slot."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_pipelines.images import ImagePolicy, patchify, prepare
from data_pipelines.segments import DRAWN, SOURCE, Image, Text
from data_pipelines.sequences.format import SequenceConfig
from data_pipelines.sequences.sequence import VISION_START, build_prefix
from data_pipelines.sequences.tasks import BrokenExample, unconditional_segments
from tests.data.samples import SMALL, picture, tokenizer
from tests.data.sequences.spelled import APART, DOT, DRAW, LOOK, PAINT, RED, W, spell, write
from unicom_jax.core.batch import Role


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
