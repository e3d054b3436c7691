"""Conversations, sizes and lengths of `unicom sample`, without a trained model."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image as PilImage
from rich.console import Console

from data_pipelines import images
from data_pipelines.build import sequence_config
from data_pipelines.segments import DRAWN, SOURCE, UNDERSTOOD, Image, Text
from data_pipelines.sequences.tokenizer import train_tokenizer
from tests.tiny import tiny_config
from unicom_jax.inference.chat import chat
from unicom_jax.inference.command import check_length, check_longest, size_of
from unicom_jax.inference.pictures import contact_sheet


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    PilImage.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(path)
    return path


def converse(monkeypatch, tmp_path, lines, answers):
    """What is said to a model that answers by the book, and what the terminal shows."""
    heard, shown = [], io.StringIO()

    def answer(conversation, turn, say):
        heard.append((list(conversation), turn))
        for segment in answers[turn]:
            if isinstance(segment, Text):
                say(segment.text[:1])
                say(segment.text[1:])
        return answers[turn]

    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    chat(answer, Console(file=shown), tmp_path / "chat.png")
    return heard, shown.getvalue()


def test_a_conversation_remembers_what_was_said_until_a_new_one(monkeypatch, tmp_path):
    drawn = Image(np.zeros((8, 8, 3), np.uint8), DRAWN)
    answers = [[Text("yes", True), drawn], [drawn], []]
    heard, shown = converse(monkeypatch, tmp_path, ["draw", "again", "/new", "so?"], answers)
    asked = Text("draw"), Text("yes", True), drawn, Text("again")
    assert heard[1] == (list(asked), 1)
    assert heard[2] == ([Text("so?")], 2)
    assert (tmp_path / "chat-1.png").is_file() and (tmp_path / "chat-2.png").is_file()
    assert "yes" in shown and "(no answer)" in shown


@pytest.mark.parametrize(("name", "role"), [("/image", UNDERSTOOD), ("/edit", SOURCE)])
def test_a_picture_in_a_conversation_is_looked_at_or_changed(
    monkeypatch, tmp_path, picture, name, role
):
    heard, _ = converse(monkeypatch, tmp_path, [f"{name} {picture}", "now"], [[]])
    ((shown, words), _) = heard[0]
    assert shown.role == role and words == Text("now")


def test_a_mistake_in_a_conversation_costs_one_line(monkeypatch, tmp_path):
    heard, shown = converse(monkeypatch, tmp_path, ["/imgae x", "/image"], [])
    assert heard == []
    assert "/imgae is not a command; /help lists them" in shown and "/image needs a file" in shown


# ---- sizes and lengths ------------------------------------------------------------------------


def stand_in(**overrides):
    """As much of a generator as sizes and lengths need."""
    config = tiny_config(**overrides)
    sequence = sequence_config(config)
    return SimpleNamespace(
        config=config,
        sequence=sequence,
        tokenizer=train_tokenizer(["word word"], 300),
        prepared=lambda picture: images.prepare(picture, sequence.images, sequence.patch),
    )


@pytest.mark.parametrize(
    ("text", "policy", "size"),
    [
        ("48x64", "bucket", (48, 64)),
        ("1:1", "fixed", (32, 32)),
        ("16:9", "naflex", (48, 80)),
        ("4:1", "bucket", (16, 64)),
        ("1:4", "bucket", (64, 16)),
    ],
)
def test_a_ratio_becomes_a_size_under_the_image_policy(text, policy, size):
    generator = stand_in(data__policy=policy, data__max_tokens=16, data__bucket_step=16)
    assert size_of(text, generator) == size


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("big", "HEIGHTxWIDTH"),
        ("0x32", "HEIGHTxWIDTH"),
        ("16:9", "--config.data.policy=bucket"),
    ],
)
def test_a_size_that_is_none_is_refused_with_the_fix(text, words):
    with pytest.raises(ValueError, match=f"--size={text}: .*{words}"):
        size_of(text, stand_in())


def test_a_ratio_far_from_square_is_refused():
    with pytest.raises(ValueError, match="closer to 1:1"):
        size_of("100:1", stand_in(data__policy="naflex"))


def test_a_long_prompt_is_remarked_on_and_an_absurd_one_refused():
    generator, shown = stand_in(pretrain__sequence_length=20), io.StringIO()
    console = Console(file=shown)
    check_length([Text("word")], generator, console)
    assert shown.getvalue() == ""
    check_length([Text("word " * 30)], generator, console)
    assert "training rows had 20" in shown.getvalue()
    with pytest.raises(ValueError, match="shorten the text to less than 160 tokens"):
        check_length([Text("word " * 300)], generator, console)


def test_an_answer_absurdly_longer_than_a_training_row_is_refused():
    generator = stand_in(pretrain__sequence_length=20)
    check_longest(160, generator)
    with pytest.raises(ValueError, match="--max-tokens=161: .* of 20 tokens; give at most 160"):
        check_longest(161, generator)


def test_a_contact_sheet_holds_pictures_of_different_sizes_in_reading_order():
    shades = [np.full((8 + n, 16, 3), 40 * n, np.uint8) for n in range(3)]
    sheet = contact_sheet(shades)
    assert sheet.shape == (2 * 14 + 4, 2 * 20 + 4, 3)
    np.testing.assert_array_equal(sheet[4:12, 4:20], shades[0])
    np.testing.assert_array_equal(sheet[4:13, 24:40], shades[1])
    np.testing.assert_array_equal(sheet[18:28, 4:20], shades[2])
    assert (sheet[18:, 24:] == 255).all()
