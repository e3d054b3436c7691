"""Text corpora: every word of every document is read, in pieces that fit."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sequences.mixture import DocumentStream, mixture_of
from data_pipelines.sequences.packing import PackingConfig
from data_pipelines.sources.text import TextSource, cut
from tests.data.samples import SMALL, tokenizer
from tests.data.sources.formats import read_all, write_jsonl

LONG = " ".join(f"word{number}" for number in range(40))


@given(st.text(alphabet="aé漢😀 \n", max_size=200), st.integers(16, 64))
@settings(max_examples=200, deadline=None)
def test_pieces_fit_and_together_are_the_text(text, most):
    pieces = cut(text, most)
    assert all(len(piece.encode()) <= most for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())


def test_a_text_is_cut_between_lines_rather_than_words_and_between_words_rather_than_letters():
    assert cut("one two\nthree four", 14) == ["one two", "three four"]
    assert cut("one two three", 10) == ["one two", "three"]
    assert cut("x" * 40, 16) == ["x" * 16, "x" * 16, "x" * 8]
    assert cut("short", 16) == ["short"]


def test_documents_of_lines_and_of_json_come_whole_and_in_order(tmp_path):
    (tmp_path / "a.txt").write_text(f"a first\n\n{LONG}\n", encoding="utf-8")
    write_jsonl(tmp_path / "b.jsonl", [{"text": "größer"}, {"text": LONG, "id": 3}])
    source = pickle.loads(pickle.dumps(TextSource(tmp_path, 64)))
    found = [captions for image, captions in read_all(source) if image is None]
    texts = [text for (text,) in found]
    assert len(texts) == len(source) and all(len(text) <= 64 for text in texts)
    assert " ".join(texts) == f"a first {LONG} größer {LONG}"
    assert set(source.traits().tolist()) == {32}


def test_pieces_of_another_length_have_an_index_of_their_own(tmp_path):
    (tmp_path / "a.txt").write_text(LONG, encoding="utf-8")
    for piece in (64, 32, 64):
        texts = [text for _, (text,) in read_all(TextSource(tmp_path, piece))]
        assert " ".join(texts) == LONG and max(map(len, texts)) <= piece


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"content": "a"}, "no text in 'text': set data.source.captions to one of 'content'"),
        ({"text": ["a"]}, "'text' is "),
        ("{", "not JSON"),
        ({"text": "<|im_start|>"}, "a text contains"),
        ({"text": " "}, "empty caption"),
        ({"text": "half \ud83d an emoji " * 9}, "an incomplete character"),
    ],
)
def test_a_broken_document_is_named(tmp_path, row, reason):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "good"}, row])
    with pytest.raises(RecordError, match=f"a.jsonl record 2: .*{reason}"):
        TextSource(path, 64)[1]


def test_another_field_and_plain_text_that_is_not_utf8(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"content": "a"}])
    assert read_all(TextSource(path, 64, "content")) == [(None, ("a",))]
    (tmp_path / "b.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(RecordError, match="record 1: not UTF-8"):
        TextSource(tmp_path / "b.txt", 64)[0]
    with pytest.raises(SourceError, match=r"data.source.piece=4"):
        TextSource(path, 4)


def stream(source, slots):
    words = tokenizer()
    packing = PackingConfig(slots=slots, images=1, window_rows=1)
    return DocumentStream(mixture_of({"text": 1.0}, source, 3), words, SMALL, packing)


def test_each_piece_is_a_document_and_one_of_more_tokens_than_a_row_is_read_in_part(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": LONG}])
    documents = stream(TextSource(path, 64), slots=48)
    for index in range(30):
        document, skipped = documents.document(index)
        assert document.size[0] <= 48 and not skipped
        words = tokenizer().decode(document.tokens)
        assert words.count("word") > 1 and document.grids == ()


def test_a_text_serves_no_task_that_needs_a_picture(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match="no record of TextSource.* has image and captions"):
        mixture_of({"text_to_image": 1.0}, TextSource(path, 64), 0)
