"""What every command that fills a workdir does first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from data_pipelines.build import load_or_train_tokenizer
from data_pipelines.sequences.tokenizer import Tokenizer, check_tokenizer, load_tokenizer
from unicom_jax.interop.atomic import new_folder
from unicom_jax.runs.autoencoder import adopt_autoencoder
from unicom_jax.runs.configuration import any_started, store
from unicom_jax.runs.origin import check_tokenizers, given_tokenizer, take_autoencoder


def start_run(
    config: ConfigDict,
    workdir: Path,
    *,
    first: bool = True,
    check: Callable[[Tokenizer], None] = lambda tokenizer: None,
) -> Tokenizer:
    """Puts tokenizer, autoencoder and config.json into `workdir`; completes `config` from them.

    If no stage has a checkpoint yet, the tokenizer is made again: an earlier start may have been
    interrupted or may have had another configuration.

    Args:
      first: whether this is the first process of the run; the others read what it has written.
      check: called with the tokenizer before `config` is stored; if it raises, the stored
        configuration is unchanged.

    Raises:
      TokenizerError: the tokenizer is not the one that the run was started with, or not that of
        the run whose weights it starts from.
      ConfigError: the autoencoder is missing or does not fit, or a stage starts from the weights of
        a run that has none.
    """
    stored = workdir / "tokenizer"
    if first:
        workdir.mkdir(parents=True, exist_ok=True)
    if first and not any_started(workdir):
        config.data.tokenizer_fingerprint = ""
        tokenizer = given_tokenizer(config, workdir) or load_or_train_tokenizer(config, None)
        with new_folder(stored, replace=True) as folder:
            tokenizer.save(folder)
    else:
        tokenizer = load_tokenizer(stored)
    use_tokenizer(config, tokenizer, workdir)
    check_tokenizers(config, workdir)
    take_autoencoder(config, workdir)
    adopt_autoencoder(config, workdir)
    check(tokenizer)
    if first:
        store(config, workdir)
    return tokenizer


def use_tokenizer(config: ConfigDict, tokenizer: Tokenizer, owner: Path) -> None:
    """Fills in the tokenizer's fingerprint and the size of the vocabulary.

    Raises:
      TokenizerError: `config` was filled in from another tokenizer, that of `owner`.
    """
    if config.data.tokenizer_fingerprint:
        check_tokenizer(tokenizer, config.data.tokenizer_fingerprint, str(owner))
    config.data.tokenizer_fingerprint = tokenizer.fingerprint()
    config.data.vocab_size = max(tokenizer.vocab_size, config.data.padded_vocab_size)
