"""JSONL files with paths: rows in their order, conversations as questions, broken rows named."""

from __future__ import annotations

import pickle

import pytest

from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sources import jsonl
from data_pipelines.sources.broken import read_or_next
from data_pipelines.sources.chosen import records_with
from data_pipelines.sources.jsonl import JsonlSource
from tests.data.sources.formats import png, read_all, write_jsonl


def turns(*texts):
    speakers = ("human", "gpt") * len(texts)
    return [{"from": who, "value": text} for who, text in zip(speakers, texts, strict=False)]


@pytest.fixture(autouse=True)
def pictures(tmp_path):
    (tmp_path / "images").mkdir()
    for value in range(4):
        (tmp_path / "images" / f"{value}.png").write_bytes(png(value))
    (tmp_path / "images" / "bad.png").write_bytes(png(1)[:30])


def captioned(value, folder="images/"):
    return {"image": f"{folder}{value}.png", "text": f"gray {value}"}


def test_rows_come_in_order_and_blank_lines_are_none(tmp_path):
    write_jsonl(tmp_path / "b.jsonl", [captioned(2), "", captioned(3)])
    write_jsonl(tmp_path / "a.jsonl", [captioned(0), captioned(1)])
    source = pickle.loads(pickle.dumps(JsonlSource(tmp_path)))
    assert read_all(source) == [(value, (f"gray {value}",)) for value in range(4)]
    assert read_all(JsonlSource(tmp_path / "{b,a}.jsonl"))[0] == (2, ("gray 2",))
    assert source.traits().tolist() == [0] * 4


def test_names_are_relative_to_another_folder_when_asked(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [captioned(2, folder="")])
    assert read_all(JsonlSource(path, tmp_path / "images")) == [(2, ("gray 2",))]
    with pytest.raises(RecordError, match=r"a.jsonl record 1: cannot read image .*2.png"):
        JsonlSource(path)[0]
    with pytest.raises(SourceError, match=r"none: no such folder: check data.source.images"):
        JsonlSource(path, tmp_path / "none")


def test_a_conversation_about_one_picture_gives_questions(tmp_path):
    talk = turns("<image>\nWhat is it?", "Gray.", "How gray?", "Very.")
    rows = [{"id": 7, "image": "images/1.png", "conversations": talk}]
    rows += [{"image": ["images/2.png"], "conversations": talk[:2]}]
    source = JsonlSource(write_jsonl(tmp_path / "a.jsonl", rows))
    asked = [(q.question, q.answer, q.kind) for q in source[0].questions]
    assert asked == [
        ("What is it?", "Gray.", "conversation"),
        ("How gray?", "Very.", "conversation"),
    ]
    assert source[0].captions == () and int(source[1].image[0, 0, 0]) == 2
    assert source.traits().tolist() == [17, 17]


BROKEN = {
    "no JSON": ("{", "not JSON"),
    "a broken picture": ({"image": "images/bad.png", "text": "a"}, "bad.png"),
    "no name": ({"image": 3, "text": "a"}, "3 is not a file name"),
    "two pictures": ({"image": ["a", "b"], "text": "a"}, "lists 2 pictures"),
    "an answer first": (
        {"image": "images/1.png", "conversations": turns("a", "b")[1:]},
        "turn 1 of its conversation",
    ),
    "an unknown speaker": (
        {"image": "images/1.png", "conversations": [{"from": "narrator", "value": "a"}]},
        "turn 1 of its conversation",
    ),
    "no answer": ({"image": "images/1.png", "conversations": turns("a", "b", "c")}, "add the answ"),
    "an empty turn": (
        {"image": "images/1.png", "conversations": turns("<image>", "b")},
        "empty turn",
    ),
    "two marks": (
        {"image": "images/1.png", "conversations": turns("<image><image>a", "b")},
        "2 mark",
    ),
    "nothing": ({"id": 3}, "empty caption"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_row_is_named_and_another_takes_its_place(tmp_path, name):
    row, reason = BROKEN[name]
    source = JsonlSource(write_jsonl(tmp_path / "a.jsonl", [captioned(0), row, captioned(2)]))
    with pytest.raises(RecordError, match=f"a.jsonl record 2: .*{reason}"):
        source[1]
    assert read_or_next(source, 1)[0].captions == ("gray 2",)


def test_each_task_finds_the_rows_that_serve_it(tmp_path):
    talk = turns("What?", "Gray.")
    rows = [
        captioned(0),
        {"image": "images/1.png"},
        {"image": "images/1.png", "conversations": talk},
        {"text": "words alone"},
        {"text": "words alone", "conversations": talk},
        {"image": "images/1.png", "text": "a", "conversations": talk},
        {"image": "images/1.png", "text": None},
        {"text": "no picture", "type": "image"},
    ]
    source = JsonlSource(write_jsonl(tmp_path / "a.jsonl", rows))
    found = source.traits()
    assert found.tolist() == [0, 16, 17, 32, 33, 1, 16, 32]

    def chosen(names, takes):
        fit = records_with(source, names, found, takes)
        return list(range(8)) if fit is source else [fit.indices[i] for i in range(len(fit))]

    assert chosen((), ("image", "captions")) == [0, 5]
    assert chosen(("questions",), ("image",)) == [2, 5]
    assert chosen((), ("captions",)) == [0, 3, 4, 5, 7]


def test_traits_are_kept_with_the_index(tmp_path, monkeypatch):
    path = write_jsonl(tmp_path / "a.jsonl", [captioned(0), {"text": "words"}])
    JsonlSource(path)
    monkeypatch.setattr(jsonl, "scan_lines", None)
    assert JsonlSource(path).traits().tolist() == [0, 32]


def test_files_that_have_no_lines_are_refused_with_the_cure(tmp_path):
    array = tmp_path / "a.jsonl"
    array.write_text('[{"image": "a.png"}]')
    with pytest.raises(SourceError, match=r"a.jsonl: one JSON array.* jq -c"):
        JsonlSource(array)
    array.write_bytes(b"\x1f\x8b\x08 compressed\n")
    with pytest.raises(SourceError, match=r"a.jsonl: compressed.*decompress it first"):
        JsonlSource(array)
    with pytest.raises(SourceError, match=r"no .jsonl file there"):
        JsonlSource(tmp_path / "images")
