from __future__ import annotations

import json
import pickle
import random

import pytest
import tokenizers

from data_pipelines.sequences import tokenizer as tokenizer_lib

TEXTS = ["a red circle above a small blue square", "two green triangles", "a blue circle"] * 4
SPECIAL_TEXT = (
    "<|im_start|>draw a red circle<|im_end|><think>plan</think><|vision_start|><|endoftext|>"
)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_lib.train_tokenizer(TEXTS, 400)


def write_without_tokenizer_json(tokenizer, directory):
    """The older layout of Qwen2.5: vocab.json and merges.txt, which transformers converts."""
    model = json.loads(tokenizer.to_json())["model"]
    merges = [" ".join(merge) for merge in model["merges"]]
    (directory / "vocab.json").write_text(json.dumps(model["vocab"]))
    (directory / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "Qwen2Tokenizer"}')


def without_tokens(tokenizer, names):
    """The same tokenizer with the spellings of some special tokens changed."""
    text = tokenizer.to_json()
    for name in names:
        spelling = json.dumps(tokenizer_lib.SPECIAL_TOKENS[name])
        text = text.replace(spelling, json.dumps(f"[{name}]"))
    return text


@pytest.mark.parametrize(
    "text", ["a red circle", "", " \n\ttabs  and spaces ", "größer 漢字 🎈", "\x00\x7f"]
)
def test_any_text_survives_encoding_and_decoding(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_every_word_of_the_corpus_with_its_space_becomes_one_token(tokenizer):
    words = {word for text in TEXTS for word in text.split()[1:]}
    assert all(len(tokenizer.encode(f" {word}")) == 1 for word in words)


def test_a_token_on_demand_comes_behind_all_others_and_survives_saving(tokenizer, tmp_path):
    assert "no_mean" not in tokenizer.special_ids
    more = tokenizer_lib.with_token(tokenizer, "no_mean")
    assert more.encode("a<no_mean>") == [*tokenizer.encode("a"), tokenizer.vocab_size]
    assert more.fingerprint() != tokenizer.fingerprint()
    assert tokenizer_lib.with_token(more, "no_mean") is more
    more.save(tmp_path)
    kept = tokenizer_lib.load_tokenizer(tmp_path)
    assert kept.fingerprint() == more.fingerprint()
    assert kept.require("no_mean") == tokenizer.vocab_size


def test_special_spellings_in_a_text_become_their_ids(tokenizer):
    ids = tokenizer.encode(SPECIAL_TEXT)
    assert ids[0] == tokenizer.turn_start
    assert ids[-2:] == [tokenizer.vision_start, tokenizer.end_of_document]
    assert ids.count(tokenizer.think_start) == ids.count(tokenizer.think_end) == 1
    assert ids.count(tokenizer.turn_end) == 1


def test_encoding_adds_nothing_at_the_ends(tokenizer):
    specials = set(tokenizer.special_ids.values())
    assert not specials & set(tokenizer.encode("a red circle"))


def test_decoding_skips_special_tokens_unless_asked_otherwise(tokenizer):
    ids = tokenizer.encode("red<|im_end|>")
    assert tokenizer.decode(ids) == "red"
    assert tokenizer.decode(ids, skip_special=False) == "red<|im_end|>"


def test_vocab_size_is_the_largest_id_plus_one(tokenizer):
    ids = tokenizer.backend.get_vocab(with_added_tokens=True).values()
    assert sorted(ids) == list(range(tokenizer.vocab_size))


def test_training_does_not_depend_on_the_order_of_the_texts(tokenizer):
    shuffled = random.Random(1).sample(TEXTS, len(TEXTS))
    assert tokenizer_lib.train_tokenizer(shuffled, 400).to_json() == tokenizer.to_json()


def test_training_refuses_a_vocabulary_without_room_for_the_bytes():
    with pytest.raises(tokenizer_lib.TokenizerError, match="give at least 264"):
        tokenizer_lib.train_tokenizer(TEXTS, 200)


def test_a_saved_tokenizer_loads_with_the_same_ids(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    loaded = tokenizer_lib.load_tokenizer(tmp_path)
    assert loaded.fingerprint() == tokenizer.fingerprint()
    assert loaded.encode(SPECIAL_TEXT) == tokenizer.encode(SPECIAL_TEXT)


def test_transformers_loads_a_saved_tokenizer_with_the_same_ids(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in (SPECIAL_TEXT, "two unseen words, größer"):
        assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.eos_token_id == loaded.pad_token_id == tokenizer.end_of_document


def test_a_directory_without_tokenizer_json_loads_through_transformers(tokenizer, tmp_path):
    pytest.importorskip("transformers")
    write_without_tokenizer_json(tokenizer, tmp_path)
    loaded = tokenizer_lib.load_tokenizer(tmp_path, add_missing=True)
    assert loaded.encode("a red circle<|im_end|>") == tokenizer.encode("a red circle<|im_end|>")


def test_the_code_of_a_folder_is_neither_run_nor_asked_about(tokenizer, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    write_without_tokenizer_json(tokenizer, tmp_path)
    about = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(about))
    (tmp_path / "own.py").write_text("raise SystemExit('it was run')\n")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *words: asked.append(words) or "y")
    loaded = tokenizer_lib.load_tokenizer(tmp_path, add_missing=True)
    assert loaded.encode("a red circle") == tokenizer.encode("a red circle") and not asked


@pytest.mark.parametrize("file", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_given_chat_template_and_its_end_token_are_kept(tokenizer, tmp_path, file):
    """As a run keeps the tokenizer that it was given; ids do not depend on them."""
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path / "given")
    path = tmp_path / "given" / "tokenizer_config.json"
    config = {**json.loads(path.read_text()), "eos_token": {"content": "<|im_end|>"}}
    if file == path.name:
        config["chat_template"] = "{{ messages }}"
    else:
        (path.parent / file).write_text("{{ messages }}")
    path.write_text(json.dumps(config))
    given = tokenizer_lib.load_tokenizer(path.parent)
    given.save(tmp_path / "run")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "run")
    assert loaded.chat_template == "{{ messages }}" and loaded.eos_token == "<|im_end|>"
    again = tokenizer_lib.load_tokenizer(tmp_path / "run")
    assert again.details == given.details and again.fingerprint() == tokenizer.fingerprint()


def test_json_and_pickle_keep_the_tokenizer(tokenizer):
    for copy in (
        tokenizer_lib.Tokenizer.from_json(tokenizer.to_json()),
        pickle.loads(pickle.dumps(tokenizer)),
    ):
        assert copy.encode(SPECIAL_TEXT) == tokenizer.encode(SPECIAL_TEXT)
        assert copy.fingerprint() == tokenizer.fingerprint()


def test_truncation_that_a_file_carries_is_ignored(tokenizer, tmp_path):
    parts = json.loads(tokenizer.to_json())
    parts["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(parts))
    loaded = tokenizer_lib.load_tokenizer(tmp_path)
    assert loaded.encode("a red circle above") == tokenizer.encode("a red circle above")


def test_a_tokenizer_without_think_says_how_to_get_it(tokenizer):
    bare = tokenizer_lib.Tokenizer.from_json(
        without_tokens(tokenizer, ["think_start", "think_end"])
    )
    assert bare.think_start is None and bare.think_end is None
    with pytest.raises(tokenizer_lib.TokenizerError, match="'<think>'.*add_missing=True"):
        bare.require("think_start")


def test_missing_special_tokens_are_appended_on_request(tokenizer, tmp_path):
    (tmp_path / "tokenizer.json").write_text(without_tokens(tokenizer, ["think_start", "turn_end"]))
    with pytest.raises(tokenizer_lib.TokenizerError, match=r"no <\|im_end\|>"):
        tokenizer_lib.load_tokenizer(tmp_path)
    loaded = tokenizer_lib.load_tokenizer(tmp_path, add_missing=True)
    added = {loaded.turn_end, loaded.think_start}
    assert added == {tokenizer.vocab_size, tokenizer.vocab_size + 1}
    assert loaded.vocab_size == tokenizer.vocab_size + 2


def test_the_wrong_tokenizer_is_refused_in_one_line_that_names_the_fix(tokenizer):
    other = tokenizer_lib.train_tokenizer(["something else entirely"], 300)
    tokenizer_lib.check_tokenizer(tokenizer, tokenizer.fingerprint(), "runs/a")
    with pytest.raises(
        tokenizer_lib.TokenizerError, match="runs/a.*put the tokenizer/ folder"
    ) as caught:
        tokenizer_lib.check_tokenizer(other, tokenizer.fingerprint(), "runs/a")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, "", "{", '{"model": 3}'])
def test_an_unreadable_tokenizer_is_one_line_that_names_the_file(tmp_path, content):
    file = tmp_path / "tokenizer.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(tokenizer_lib.TokenizerError, match="tokenizer.json") as caught:
        tokenizer_lib.load_tokenizer(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "model",
    [
        tokenizers.models.WordLevel({"a": 0}, unk_token="[UNK]"),
        tokenizers.models.WordPiece({"a": 0}, unk_token="[UNK]"),
        tokenizers.models.Unigram([("a", -1.0)]),
        tokenizers.models.BPE({"a": 0}, []),  # would drop what it does not know in silence
    ],
    ids=["words", "pieces", "unigram", "bpe"],
)
def test_a_tokenizer_that_cannot_write_every_text_is_refused(model, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizers.Tokenizer(model).to_str(), encoding="utf-8")
    with pytest.raises(
        tokenizer_lib.TokenizerError, match="for unknown characters; give it an unk_token"
    ):
        tokenizer_lib.load_tokenizer(tmp_path)
