"""Words: the cached loop writes what a full pass would, and sampling keeps the right tokens."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.segments import UNDERSTOOD, Text
from data_pipelines.sequences.sequence import build_prefix
from tests.families.documents import image
from tests.inference import full_pass
from unicom_jax.inference import engine
from unicom_jax.inference.prompt import bucket, collate
from unicom_jax.inference.text import Sampling, Tail, begin_writing, choose

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
        models, params, sampling = generator.models, generator.params, Sampling()
        hidden, cache = engine.read(
            models, params, prefixes.batch, prefixes.patches, prefixes.lengths - 1,
            models.new_cache(len(documents), prefixes.slots + max_tokens), np.int32(0),
        )  # fmt: skip
        tail = Tail(
            prefixes.lengths, prefixes.next_positions, np.int32(prefixes.slots),
            np.arange(len(documents)), np.uint32(0), stop,
        )  # fmt: skip
        writing = engine.write(
            models, params, begin_writing(hidden, cache, max_tokens), tail, np.int32(max_tokens),
            sampling.numbers, mode=sampling.mode,
        )  # fmt: skip
        tokens = np.asarray(writing.tokens)
        return tokens, (tokens >= 0).sum(axis=1)

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


def test_a_row_ends_with_its_stop_token_while_others_continue(documents, written, write):
    row, other = written
    step = next(i for i in range(1, COUNT) if row[i] not in row[:i] and row[i] not in other)
    tokens, counts = write(documents, stop=row[step : step + 1])
    np.testing.assert_array_equal(tokens[0], [*row[: step + 1], *[-1] * (COUNT - step - 1)])
    np.testing.assert_array_equal(tokens[1], other)
    np.testing.assert_array_equal(counts, [step + 1, COUNT])


def test_prefixes_of_one_batch_are_padded_to_a_common_length(generator, documents):
    prefixes = collate(documents, generator.sequence)
    assert prefixes.slots == bucket(max(map(len, documents)))
    np.testing.assert_array_equal(prefixes.lengths, [len(document) for document in documents])
    for row, length in enumerate(prefixes.lengths):
        assert not prefixes.batch.roles[row, length:].any()
        assert prefixes.batch.roles[row, :length].all()


def test_lengths_of_rows_are_few_and_waste_little():
    lengths = {bucket(count) for count in range(1, 257)}
    assert lengths == {32, 64, 128, 256}
    long = [(count, bucket(count)) for count in range(257, 5000)]
    assert all(count <= length < 1.26 * count + 1 for count, length in long)
    assert len({length for _, length in long}) == 17  # four an octave


# ---- sampling -----------------------------------------------------------------------------

PROBABILITIES = (0.4, 0.3, 0.15, 0.1, 0.05)


def drawn(sampling: Sampling, draws: int = 2000) -> np.ndarray:
    """How often each token is drawn; the tokens are not sorted by probability."""
    order = np.array([3, 0, 4, 2, 1])
    logits = jnp.log(jnp.asarray(PROBABILITIES))[order]
    keys = jax.random.split(jax.random.key(1), draws)
    many = jnp.tile(logits, (draws, 1))
    tokens = jax.jit(choose, static_argnums=2)(many, keys, sampling.mode, sampling.numbers)
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


@pytest.mark.parametrize(("top_k", "kept"), [(0, 5), (9, 5), (3, 3), (1, 1)])
def test_top_k_keeps_so_many_of_the_likeliest(top_k, kept):
    shares = drawn(Sampling(temperature=1.0, top_k=top_k))
    assert np.all(shares[:kept] > 0) and not np.any(shares[kept:])


def test_top_p_counts_the_probability_of_what_top_k_leaves():
    shares = drawn(Sampling(temperature=1.0, top_k=2, top_p=0.5))  # .4 of .7 is more than half
    assert shares[0] == 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_p": 2}, "top_p"),
        ({"top_k": -1}, "top_k"),
    ],
)
def test_a_number_out_of_range_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Sampling(**options)


def test_temperature_zero_takes_the_likeliest_token():
    np.testing.assert_array_equal(drawn(Sampling(0.0), 10), [1, 0, 0, 0, 0])


def test_a_low_temperature_sharpens():
    assert drawn(Sampling(0.5))[0] > drawn(Sampling(1.0))[0] + 0.1


def test_a_row_draws_its_own_tokens_whatever_the_batch_is():
    logits = jax.random.normal(jax.random.key(0), (4, 50))
    keys = jax.random.split(jax.random.key(1), 4)
    how = Sampling(1.0).mode, Sampling(1.0).numbers
    alone = [choose(logits[i : i + 1], keys[i : i + 1], *how) for i in range(4)]
    np.testing.assert_array_equal(choose(logits, keys, *how), np.concatenate(alone))
