"""What a document teaches: the targets of its slots."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.segments import Text
from tests.data.samples import SMALL, tokenizer
from tests.data.sequences.spelled import DOT, DRAW, LOOK, PAINT, RED, write
from unicom_jax.core.batch import Role


def learnt(document):
    """The text that the document teaches, token by token."""
    return tokenizer().decode(document.targets[document.target_weights > 0], skip_special=False)


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
