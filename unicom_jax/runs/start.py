"""What all commands that fill a workdir do first."""

from __future__ import annotations

from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines.build import load_or_train_tokenizer
from data_pipelines.sequences.tokenizer import Tokenizer, check_tokenizer
from unicom_jax.config import to_json
from unicom_jax.runs.autoencoder import adopt_autoencoder
from unicom_jax.runs.origin import check_tokenizers, take_autoencoder, take_tokenizer


def start_run(config: ConfigDict, workdir: Path) -> Tokenizer:
    """Puts tokenizer, autoencoder and config.json into `workdir`; fills `config` in from them.

    Raises:
      TokenizerError: the tokenizer is not the one that the run was started with, or not that of
        the run whose weights it starts from.
      ConfigError: the autoencoder is missing or does not fit, or a stage starts from the weights of
        a run that has none.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    take_tokenizer(config, workdir)
    tokenizer = load_or_train_tokenizer(config, workdir / "tokenizer")
    use_tokenizer(config, tokenizer, workdir)
    check_tokenizers(config, workdir)
    take_autoencoder(config, workdir)
    adopt_autoencoder(config, workdir)
    stored, text = workdir / "config.json", to_json(config)
    if not stored.is_file() or stored.read_text() != text:
        part = stored.with_suffix(".part")  # whole or not at all: other processes read it
        part.write_text(text)
        part.replace(stored)
    return tokenizer


def use_tokenizer(config: ConfigDict, tokenizer: Tokenizer, owner: Path) -> None:
    """Fills in the tokenizer's fingerprint and the size of the vocabulary.

    Raises:
      TokenizerError: `config` was filled in by another one, that of `owner`.
    """
    if config.data.tokenizer_fingerprint:
        check_tokenizer(tokenizer, config.data.tokenizer_fingerprint, str(owner))
    config.data.tokenizer_fingerprint = tokenizer.fingerprint()
    config.data.vocab_size = max(tokenizer.vocab_size, config.data.padded_vocab_size)
