"""Documents without their words: what is left out, what stays, and when."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from data_pipelines.segments import Text
from data_pipelines.sequences.dropout import build_training, build_unconditional
from data_pipelines.sequences.sequence import build_document, build_prefix
from data_pipelines.sequences.tasks import BrokenExample
from data_pipelines.sequences.tokenizer import TokenizerError, with_token
from tests.data.samples import SMALL, tokenizer
from tests.data.sequences.spelled import DOT, DRAW, LOOK, PAINT, RED, W, spell, write

NO_MEAN = with_token(tokenizer(), "no_mean")
MASKED = dataclasses.replace(SMALL, cfg_dropout=1.0, unconditional="masked")


def spell_masked(document):
    """As `spell`, with a dash for a word or mark that is left out."""
    masked = document.tokens == NO_MEAN.require("no_mean")
    return "".join(
        "-" if here else sign for here, sign in zip(masked, spell(document), strict=True)
    )


@pytest.mark.parametrize(
    ("segments", "spelling"),
    [
        ((RED, DRAW), f"-{'-' * len(W)}-[nnnn"),
        ((PAINT, RED, DRAW), f"-[cccc]{'-' * len(W)}-[nnnn"),
        ((RED, DOT, DRAW), f"-{'-' * len(W)}-{'-' * len(W)}[nnnn"),
        ((RED, DRAW, RED, DOT), f"-{'-' * len(W)}-[cccc].({W}){W}.nnnn"),
        ((RED, DRAW, RED, DRAW), f"-{'-' * len(W)}-[cccc]--{'-' * len(W)}-[nnnnnnnn"),
        ((LOOK, RED, DOT), f"([uuuu]{W}){W}."),  # draws nothing
    ],
)
def test_masked_words_are_all_tokens_before_the_last_drawn_image_but_its_marks(segments, spelling):
    rng = np.random.default_rng(0)
    document = build_training(segments, NO_MEAN, MASKED, rng, "dots/7")
    assert spell_masked(document) == spelling


def test_masking_words_changes_nothing_else_labels_and_the_source_of_an_edit_included():
    for segments in ((RED, DRAW), (PAINT, RED, DOT, DRAW), (RED, DRAW, RED, DRAW)):
        masked = build_training(segments, NO_MEAN, MASKED, np.random.default_rng(0), "dots/7")
        whole = build_document(segments, NO_MEAN, MASKED, "dots/7")
        assert (masked.tokens != whole.tokens).any() and masked.tokens.dtype == np.int32
        tokens = {"tokens": None}
        np.testing.assert_equal(
            dataclasses.asdict(dataclasses.replace(masked, **tokens)),
            dataclasses.asdict(dataclasses.replace(whole, **tokens)),
        )


def test_both_forms_of_dropout_choose_the_same_documents():
    often = dataclasses.replace(SMALL, cfg_dropout=0.3, image_dropout=0.2)
    forms = (often, dataclasses.replace(often, unconditional="masked"))
    found = []
    for form in forms:
        rng = np.random.default_rng(1)
        found.append([build_training((PAINT, RED, DRAW), NO_MEAN, form, rng) for _ in range(60)])
    full = len(write(PAINT, RED, DRAW))
    dropped = [len(one) < full and len(one.grids) == 2 for one in found[0]]
    masked = [NO_MEAN.require("no_mean") in one.tokens for one in found[1]]
    assert dropped == masked and 8 < sum(masked) < 30


def test_a_tokenizer_without_the_token_says_what_to_do():
    with pytest.raises(TokenizerError, match="no '<no_mean>': a run that needs it adds it when"):
        build_unconditional([RED], tokenizer(), MASKED)


def test_words_may_not_spell_the_token_of_words_that_are_left_out():
    said = Text("a <no_mean> dot")
    build_prefix([said], tokenizer(), SMALL)  # plain words for a tokenizer that lacks it
    with pytest.raises(BrokenExample, match="contains tokens that mark"):
        build_prefix([said], NO_MEAN, MASKED)
