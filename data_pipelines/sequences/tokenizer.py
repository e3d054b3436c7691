"""Text to token ids and back: one frozen wrapper over Hugging Face's `tokenizers`.

Qwen2.5's tokenizer and the small ones that this project trains use the same names for their special
tokens, so the sequence format does not depend on which of them is in use.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tokenizers

from data_pipelines.marks import ON_DEMAND, SPECIAL_TOKENS
from unicom_jax.core.paths import as_path, local_copy

SPELLINGS = SPECIAL_TOKENS | ON_DEMAND
OPTIONAL_TOKENS = ("think_start", "think_end")  # Qwen2.5 has none
BYTE_ALPHABET = 256
UNUSUAL = "\u2603"  # a snowman: few vocabularies have a token for it
# What a given tokenizer says about its use, which a run keeps for whoever loads it later.
KEPT = ("chat_template", "eos_token", "pad_token", "model_max_length", "padding_side")


class TokenizerError(ValueError):
    """A tokenizer that is unreadable, lacks a token, or is not the one of the checkpoint."""


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Ids of texts. Special-token spellings in a text become their ids; no BOS or EOS is added.

    Can be pickled (for loader processes). Two tokenizers are interchangeable when their
    `fingerprint()`s agree.

    Attributes:
      details: entries of a given tokenizer_config.json that do not affect ids, such as its chat
        template (`KEPT`); `save` writes them back.

    Raises:
      TokenizerError: the backend lacks a special token that every sequence needs.
    """

    backend: tokenizers.Tokenizer
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        required = SPECIAL_TOKENS.keys() - set(OPTIONAL_TOKENS)
        missing = sorted(SPECIAL_TOKENS[name] for name in required - self.special_ids.keys())
        if missing:
            raise TokenizerError(
                f"the tokenizer has no {', '.join(missing)}: use one of the Qwen2.5 family, "
                "or add them with load_tokenizer(path, add_missing=True)"
            )

    def encode(self, text: str) -> list[int]:
        return self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Text of `ids`. Bytes that are not UTF-8 (a cut-off character) become U+FFFD."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Largest id + 1, including added tokens: the fewest rows an embedding table can have."""
        return max(self.backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def special_ids(self) -> dict[str, int]:
        """Attribute name -> id of every special token that the tokenizer has."""
        found = {name: _special_id(self.backend, token) for name, token in SPELLINGS.items()}
        return {name: token_id for name, token_id in found.items() if token_id is not None}

    @property
    def end_of_document(self) -> int:
        return self.require("end_of_document")

    @property
    def turn_start(self) -> int:
        return self.require("turn_start")

    @property
    def turn_end(self) -> int:
        return self.require("turn_end")

    @property
    def vision_start(self) -> int:
        return self.require("vision_start")

    @property
    def vision_end(self) -> int:
        return self.require("vision_end")

    @property
    def image_pad(self) -> int:
        return self.require("image_pad")

    @property
    def think_start(self) -> int | None:
        """None if there is no such token (Qwen2.5); `require("think_start")` raises."""
        return self.special_ids.get("think_start")

    @property
    def think_end(self) -> int | None:
        """None if there is no such token (Qwen2.5); `require("think_end")` raises."""
        return self.special_ids.get("think_end")

    def require(self, name: str) -> int:
        """Id of the special token with the attribute name `name`, a key of SPELLINGS.

        Raises:
          TokenizerError: the tokenizer has no such token.
        """
        if name not in self.special_ids:
            cure = (
                "a run that needs it adds it when it first starts; start another --workdir"
                if name in ON_DEMAND
                else "load it with load_tokenizer(path, add_missing=True), or leave out the tasks "
                "that need it"
            )
            raise TokenizerError(f"the tokenizer has no {SPELLINGS[name]!r}: {cure}")
        return self.special_ids[name]

    def to_json(self) -> str:
        """The whole tokenizer as a string, in the format of tokenizer.json."""
        return self.backend.to_str()

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Inverse of `to_json`.

        Raises:
          TokenizerError: `text` is not a tokenizer.json.
        """
        return cls(_parse(text, "the embedded tokenizer"))

    def save(self, directory: str | pathlib.Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, which AutoTokenizer can load too."""
        directory = as_path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        present = [SPELLINGS[name] for name in self.special_ids]
        end = SPECIAL_TOKENS["end_of_document"]
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": end,
            "pad_token": end,
            "additional_special_tokens": [token for token in present if token != end],
            "clean_up_tokenization_spaces": False,
            "add_bos_token": False,
            "model_input_names": ["input_ids", "attention_mask"],
            **self.details,
        }
        (directory / "tokenizer.json").write_text(self.to_json(), encoding="utf-8")
        text = json.dumps(config, indent=2) + "\n"
        (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")

    def fingerprint(self) -> str:
        """A hash, 16 hex digits, of everything that decides ids, however the JSON is written."""
        parts = json.loads(self.to_json())
        merges = parts["model"].get("merges", [])
        # Older versions of tokenizers write a merge as "a b", newer ones as ["a", "b"].
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
        vocab = sorted(self.backend.get_vocab(with_added_tokens=True).items())
        text = json.dumps(
            [vocab, merges, parts["normalizer"], parts["pre_tokenizer"]], sort_keys=True
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE: any text can be encoded, frequent " words" become one token.

    Args:
      texts: the corpus; the result depends on it as a multiset, not on its order.
      vocab_size: upper bound, including the special tokens and the 256 bytes; training stops
        earlier once every word of the corpus is a token.

    Raises:
      TokenizerError: `vocab_size` is too small for the bytes.
    """
    smallest = BYTE_ALPHABET + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise TokenizerError(
            f"vocab_size is {vocab_size}: give at least {smallest} (bytes and special tokens)"
        )
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=1,
        special_tokens=[_added(token) for token in SPECIAL_TOKENS.values()],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return Tokenizer(backend)


def load_tokenizer(path: str | pathlib.Path, *, add_missing: bool = False) -> Tokenizer:
    """Load a Hugging Face tokenizer directory (or a tokenizer.json itself).

    Args:
      path: a directory with tokenizer.json, or with the older files that transformers converts
        (vocab.json, ...).
      add_missing: append the special tokens that are missing, e.g. "<think>" for Qwen2.5, which
        has more embedding rows (152064) than tokens.

    Raises:
      TokenizerError: nothing readable at `path`, or a required token is missing.
    """
    path = as_path(path).expanduser()
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.is_file():
        backend = _parse(file.read_text(encoding="utf-8", errors="replace"), str(file))
    elif path.is_dir():
        backend = _convert(path)
    else:
        raise TokenizerError(
            f"{path}: no such tokenizer: give a directory that holds tokenizer.json"
        )
    if add_missing:
        absent = [token for token in SPECIAL_TOKENS.values() if _special_id(backend, token) is None]
        backend.add_special_tokens([_added(token) for token in absent])
    return Tokenizer(backend, _details(path) if path.is_dir() else {})


def with_token(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """The tokenizer with the special token `name`, a key of SPELLINGS, appended after all others.

    Returns the same tokenizer if it has that token.
    """
    if name in tokenizer.special_ids:
        return tokenizer
    backend = _parse(tokenizer.to_json(), "the tokenizer")
    backend.add_special_tokens([_added(SPELLINGS[name])])
    return Tokenizer(backend, tokenizer.details)


def _details(folder: pathlib.Path) -> dict[str, Any]:
    """The entries `KEPT` of a folder's tokenizer_config.json, and a chat template's own file."""
    found = _read_json(folder / "tokenizer_config.json")
    details = {name: found[name] for name in KEPT if found.get(name) is not None}
    for name in ("eos_token", "pad_token"):
        if isinstance(details.get(name), dict):  # as older versions write a token
            details[name] = details[name]["content"]
    old, template = folder / "chat_template.json", folder / "chat_template.jinja"
    if old.is_file():
        details |= {k: v for k, v in _read_json(old).items() if k == "chat_template"}
    if template.is_file():
        details["chat_template"] = template.read_text(encoding="utf-8")
    return details


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """The object in a JSON file; {} if there is no file."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise TokenizerError(f"{path} cannot be read ({error}); copy it again") from error


def check_tokenizer(tokenizer: Tokenizer, fingerprint: str, owner: str) -> None:
    """Refuse a tokenizer whose ids do not mean what the weights of `owner` (a checkpoint) learned.

    Raises:
      TokenizerError: the fingerprints differ.
    """
    given = tokenizer.fingerprint()
    if given != fingerprint:
        raise TokenizerError(
            f"{owner}: was trained with tokenizer {fingerprint}, not with the given {given}: "
            "put the tokenizer/ folder that training wrote there back in its place"
        )


def _special_id(backend: tokenizers.Tokenizer, token: str) -> int | None:
    """Id of `token` if its spelling in a text encodes to it; a plain vocabulary entry does not."""
    ids = backend.encode(token, add_special_tokens=False).ids
    return ids[0] if len(ids) == 1 and ids[0] == backend.token_to_id(token) else None


def _added(token: str) -> tokenizers.AddedToken:
    return tokenizers.AddedToken(token, special=True, normalized=False)


def _parse(text: str, name: str) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception for anything malformed
        reason = str(error).splitlines()[0]
        raise TokenizerError(
            f"{name}: not a readable tokenizer ({reason}): save or copy it again"
        ) from None
    # A tokenizer.json may carry its trainer's truncation and padding; here packing decides lengths.
    backend.no_truncation()
    backend.no_padding()
    try:
        lost = not backend.encode(UNUSUAL).ids
    except Exception:  # as above
        lost = True
    if lost:
        raise TokenizerError(
            f"{name}: has no token for unknown characters; give it an unk_token, or use a "
            "tokenizer that falls back to bytes"
        )
    return backend


def _convert(path: pathlib.Path) -> tokenizers.Tokenizer:
    try:
        import transformers  # slow to import, and only these directories need it

        with local_copy(path) as folder:
            loaded = transformers.AutoTokenizer.from_pretrained(
                str(folder),
                local_files_only=True,
                trust_remote_code=False,  # else a model with code of its own asks at the terminal
            )
        text = loaded.backend_tokenizer.to_str()
    except Exception as error:  # its converters raise many types
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TokenizerError(
            f"{path}: transformers cannot load a tokenizer from it ({reason}): "
            "give a directory that holds tokenizer.json"
        ) from None
    return _parse(text, str(path))
