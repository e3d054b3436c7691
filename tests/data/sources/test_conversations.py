"""Conversations about several pictures become documents, turn after turn."""

from __future__ import annotations

import pickle

import pytest

from data_pipelines.faults import RecordError
from data_pipelines.segments import UNDERSTOOD, Image
from data_pipelines.sequences.mixture import mixture_of
from data_pipelines.sources.conversations import ConversationsSource
from tests.data.sources.formats import png, write_jsonl
from tests.data.sources.test_jsonl import turns


@pytest.fixture(autouse=True)
def pictures(tmp_path):
    for value in range(3):
        (tmp_path / f"{value}.png").write_bytes(png(value))


def parts(document):
    """A picture's level of gray, a prompt's text, and an answer's text after a sign."""
    return [
        int(part.pixels[0, 0, 0])
        if isinstance(part, Image)
        else ("> " if part.supervised else "") + part.text
        for part in document.segments
    ]


@pytest.mark.parametrize(
    ("names", "talk", "expected"),
    [
        (
            ["1.png", "0.png"],
            turns("<image> and\n<image>: which?", "The first.", "Sure?", "Yes."),
            [1, "and", 0, ": which?", "> The first.", "Sure?", "> Yes."],
        ),
        ("2.png", turns("what?\n<image>", "gray"), ["what?", 2, "> gray"]),
        (
            ["0.png", "1.png"],
            turns("same?", "no", "why?", "so"),
            [0, 1, "same?", "> no", "why?", "> so"],
        ),
        (
            ["0.png", "1.png"],
            turns("<image>a", "b", "<image>c", "d"),
            [0, "a", "> b", 1, "c", "> d"],
        ),
        (None, turns("hello", "hi"), ["hello", "> hi"]),
    ],
)
def test_pictures_stand_where_their_marks_are(tmp_path, names, talk, expected):
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": names, "conversations": talk}])
    source = pickle.loads(pickle.dumps(ConversationsSource(path)))
    assert parts(source[0]) == expected
    assert {s.role for s in source[0].segments if isinstance(s, Image)} <= {UNDERSTOOD}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"image": ["0.png", "1.png"], "conversations": turns("<image>a", "b")},
            "2 pictures and 1",
        ),
        ({"conversations": turns("<image>a", "b")}, "0 pictures and 1 marks"),
        ({"image": "none.png", "conversations": turns("a", "b")}, "none.png"),
        ({"image": "0.png", "conversations": turns("a")}, "add the answer"),
        ({"image": "0.png", "conversations": turns("a", " ")}, "empty text"),
        ({"image": "0.png"}, "ends without a response"),
    ],
)
def test_a_broken_conversation_is_named(tmp_path, row, reason):
    path = write_jsonl(tmp_path / "a.jsonl", [row])
    with pytest.raises(RecordError, match=f"a.jsonl record 1: .*{reason}"):
        ConversationsSource(path)[0]


def test_the_task_document_reads_them(tmp_path):
    rows = [{"image": "0.png", "conversations": turns("a", f"b{i}")} for i in range(3)]
    source = ConversationsSource(write_jsonl(tmp_path / "a.jsonl", rows))
    mixture = mixture_of({"document": 1.0}, source, 0)
    seen = {parts(mixture.examples(mixture.pick(i))[0])[-1] for i in range(3)}
    assert seen == {"> b0", "> b1", "> b2"}
