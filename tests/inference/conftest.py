"""One small generator for all tests of inference: random weights without zeros, nothing trained."""

from __future__ import annotations

import pytest

from tests.data.samples import tokenizer
from tests.families.documents import lively
from tests.tiny import tiny_config
from unicom_jax.families.build import build_codec, build_encoder, build_unified
from unicom_jax.inference.generator import Generator


@pytest.fixture(scope="session")
def generator() -> Generator:
    # A head of its own: a random tied one repeats the last token for ever.
    config = tiny_config(
        data__vocab_size=tokenizer().vocab_size,
        evaluation__batch_size=2,
        unified__transformer__tied_head=False,
    )
    params = {
        "vision": lively(build_encoder(config).vision, 1),
        "codec": lively(build_codec(config), 2, scale=0.3),
        "unified": lively(build_unified(config), 3, scale=0.5),
    }
    return Generator(config, tokenizer(), params)
