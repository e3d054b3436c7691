"""Words: the cached loop writes what a full pass would, and sampling keeps the right tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.sequences.sequence import build_prefix
from data_pipelines.sequences.tasks import Text
from tests.families.documents import UNDERSTOOD, image
from tests.inference import full_pass
from unicom_jax.inference import engine
from unicom_jax.inference.prompt import collate
from unicom_jax.inference.text import Sampling, choose

COUNT = 6
CONVERSATIONS = (
    [image(2, UNDERSTOOD), Text("how many dots are there?")],
    [Text("think of a large blue square on the left of a red dot")],
)
NEVER = np.array([-1], np.int32)


@pytest.fixture(scope="module")
def documents(generator):
    return [build_prefix(c, generator.tokenizer, generator.sequence) for c in CONVERSATIONS]


@pytest.fixture(scope="module")
def write(generator):
    """Tokens and counts behind the two prefixes, for the given stop tokens."""

    def run(documents, stop=NEVER, max_tokens=COUNT):
        prefixes = collate(documents, generator.sequence)
        keys = jax.random.split(jax.random.key(0), len(documents))
        tokens, counts = engine.write(
            generator.models, generator.params, prefixes.batch, prefixes.lengths,
            prefixes.next_positions, stop, keys, max_tokens=max_tokens, sampling=Sampling(),
        )  # fmt: skip
        return np.asarray(tokens), np.asarray(counts)

    return run


@pytest.fixture(scope="module")
def written(documents, write):
    return write(documents)[0]


def test_the_cached_loop_writes_what_a_full_pass_for_every_token_writes(
    generator, documents, written
):
    assert len(documents[0]) != len(documents[1])  # ragged
    np.testing.assert_array_equal(written, full_pass.write(generator, documents, COUNT))
    assert len(np.unique(written)) > 3  # not one token over and over


def test_a_row_ends_with_its_stop_token_while_others_go_on(documents, written, write):
    row, other = written
    step = next(i for i in range(1, COUNT) if row[i] not in row[:i] and row[i] not in other)
    tokens, counts = write(documents, stop=row[step : step + 1])
    np.testing.assert_array_equal(tokens[0], [*row[: step + 1], *[-1] * (COUNT - step - 1)])
    np.testing.assert_array_equal(tokens[1], other)
    np.testing.assert_array_equal(counts, [step + 1, COUNT])


def test_prefixes_of_one_batch_are_padded_to_a_common_length(generator, documents):
    prefixes = collate(documents, generator.sequence)
    assert prefixes.slots % 32 == 0 and prefixes.slots >= max(map(len, documents))
    np.testing.assert_array_equal(prefixes.lengths, [len(document) for document in documents])
    for row, length in enumerate(prefixes.lengths):
        assert not prefixes.batch.roles[row, length:].any()
        assert prefixes.batch.roles[row, :length].all()


# ---- sampling -----------------------------------------------------------------------------

PROBABILITIES = (0.4, 0.3, 0.15, 0.1, 0.05)


def drawn(sampling: Sampling, draws: int = 2000) -> np.ndarray:
    """How often each token is drawn; the tokens are not sorted by probability."""
    order = np.array([3, 0, 4, 2, 1])
    logits = jnp.log(jnp.asarray(PROBABILITIES))[order]
    keys = jax.random.split(jax.random.key(1), draws)
    tokens = jax.jit(choose, static_argnums=2)(jnp.tile(logits, (draws, 1)), keys, sampling)
    counts = np.bincount(np.asarray(tokens), minlength=5)
    return counts[np.argsort(order)] / draws  # in the order of PROBABILITIES


@pytest.mark.parametrize(
    ("top_p", "kept"), [(1.0, 5), (0.96, 5), (0.9, 4), (0.72, 3), (0.5, 2), (0.3, 1), (0.0, 1)]
)
def test_top_p_keeps_the_smallest_set_that_holds_the_probability(top_p, kept):
    shares = drawn(Sampling(temperature=1.0, top_p=top_p))
    assert np.all(shares[:kept] > 0) and not np.any(shares[kept:])
    expected = np.array(PROBABILITIES[:kept]) / sum(PROBABILITIES[:kept])
    np.testing.assert_allclose(shares[:kept], expected, atol=0.05)


def test_temperature_zero_takes_the_likeliest_token():
    np.testing.assert_array_equal(drawn(Sampling(0.0), 10), [1, 0, 0, 0, 0])


def test_a_low_temperature_sharpens():
    assert drawn(Sampling(0.5))[0] > drawn(Sampling(1.0))[0] + 0.1


def test_a_row_draws_its_own_tokens_whatever_the_batch_is():
    logits = jax.random.normal(jax.random.key(0), (4, 50))
    keys = jax.random.split(jax.random.key(1), 4)
    alone = [choose(logits[i : i + 1], keys[i : i + 1], Sampling(1.0)) for i in range(4)]
    np.testing.assert_array_equal(choose(logits, keys, Sampling(1.0)), np.concatenate(alone))
