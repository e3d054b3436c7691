"""Batches as a pure function of (seed, step): stopping, sharing and workers change nothing."""

from __future__ import annotations

import pickle
from contextlib import closing

import chex
import jax
import numpy as np
import pytest

from data_pipelines.images import ImagePolicy
from data_pipelines.loading.loader import LoaderConfig, choose_window_documents, make_loader
from data_pipelines.loading.pictures import PictureConfig, WeightedSource, make_picture_loader
from data_pipelines.sequences.mixture import DocumentStream, mixture_of
from data_pipelines.sequences.packing import PackingConfig
from data_pipelines.sources.cache import CachedSource
from tests.data.samples import SMALL, Dots, example, tokenizer

WEIGHTS = {"text": 0.2, "text_to_image": 0.4, "visual_qa": 0.2, "edit": 0.2}


def loader(seed=0, bad=None, window_documents=8, start=0, window_rows=2, balance=False, **config):
    mixture = mixture_of(WEIGHTS, Dots(30, bad), seed=seed)
    packing = PackingConfig(slots=128, images=16, window_rows=window_rows, balance=balance)
    stream = DocumentStream(mixture, tokenizer(), SMALL, packing, broken="skip")
    config = LoaderConfig(**{"rows": 4, "threads": 1, "prefetch": 2, **config})
    window_documents = window_documents or choose_window_documents(stream)
    return make_loader(stream, config, window_documents=window_documents, start=start)


def pictures(source=None, **config):
    config = LoaderConfig(**{"rows": 6, "threads": 1, "prefetch": 2, **config})
    how = PictureConfig(4, ImagePolicy("fixed", size=8), text_length=4)
    return make_picture_loader(
        [WeightedSource(source or Dots(9))], tokenizer(), how, config, seed=3
    )


def share_of(batch, share):
    return jax.tree.map(lambda leaf: leaf[list(share)], batch)


def take(batches, count):
    return [next(batches) for _ in range(count)]


def test_a_batch_is_a_function_of_seed_and_step():
    one, two = loader(), loader()
    for step, batch in enumerate(take(one, 3)):
        chex.assert_trees_all_equal(batch, two.at(step))


def test_another_seed_gives_other_batches():
    assert (loader(seed=0).at(0).tokens != loader(seed=1).at(0).tokens).any()


def test_a_resumed_loader_continues_as_if_never_stopped():
    whole = loader()
    take(whole, 2)
    state = whole.get_state()
    assert state == {"next_index": 2}
    resumed = loader()
    resumed.set_state(state)
    for left, right in zip(take(whole, 2), take(resumed, 2), strict=True):
        chex.assert_trees_all_equal(left, right)


def test_a_loader_can_start_anywhere():
    chex.assert_trees_all_equal(next(loader(start=5)), loader().at(5))


def test_prefetched_batches_are_not_counted_as_delivered():
    batches = loader(prefetch=4)
    next(batches)
    assert batches.get_state() == {"next_index": 1}
    assert batches.counts["documents"] == 16


@pytest.mark.parametrize(
    "shares",
    [
        [(0, 1), (2, 3)],
        [(0, 2), (1, 3)],  # devices of a process that are no neighbours in the mesh
        [(0,), (1,), (2,), (3,)],  # fewer rows than a window
    ],
)
@pytest.mark.parametrize("balance", [False, True])
def test_the_shares_of_processes_are_rows_of_the_same_global_batch(shares, balance):
    options = {"window_rows": 4, "window_documents": 16, "balance": balance}
    whole = loader(**options).at(3)
    for share in shares:
        part = loader(share=share, **options).at(3)
        chex.assert_trees_all_equal(share_of(whole, share), part, strict=True)


def test_balance_orders_the_rows_of_each_window_so_that_neighbours_predict_as_much_together():
    options = {"window_rows": 4, "window_documents": 16, "rows": 8}
    plain, ordered = loader(**options), loader(**options, balance=True)
    apart = {False: 0, True: 0}
    for step in range(4):
        batches = {False: plain.at(step), True: ordered.at(step)}
        for window in (slice(0, 4), slice(4, 8)):
            rows = {key: batch.tokens[window] for key, batch in batches.items()}
            assert {row.tobytes() for row in rows[True]} == {row.tobytes() for row in rows[False]}
            for key, batch in batches.items():
                predicted = (batch.target_weights[window] > 0).sum(-1)
                apart[key] += abs(int(predicted[:2].sum() - predicted[2:].sum()))
    assert apart[True] < apart[False] / 2


def test_every_document_of_a_window_is_in_its_rows_or_counted():
    batches = loader(window_documents=20)  # more than fit
    next(batches)
    counts = batches.counts
    assert counts["documents"] + counts["left_over"] == 2 * 20 and counts["left_over"] > 0
    assert counts["slots"] == int((batches.at(0).roles > 0).sum())


def test_broken_examples_are_counted():
    batches = loader(bad={index: {"captions": ("",)} for index in range(10)})
    take(batches, 3)
    assert batches.counts["broken"] > 0
    assert batches.counts["documents"] == 3 * 16


def test_the_window_is_filled_by_choice_of_its_documents():
    batches = loader(window_documents=None)
    take(batches, 4)
    assert batches.counts["slots"] / (4 * 4 * 128) > 0.7
    assert batches.counts["left_over"] < 0.01 * batches.counts["documents"]


def test_a_closed_loader_resumes_where_it_stopped():
    batches = loader()
    next(batches)
    batches.close()
    chex.assert_trees_all_equal(next(batches), loader().at(1))


def test_what_makes_batches_can_be_sent_to_a_process():
    batches = loader()
    copy = pickle.loads(pickle.dumps(batches._make))
    chex.assert_trees_all_equal(copy(1)[0], batches.at(1))


def global_batches(hosts, workers, steps=3):
    """The batches of a run, put together from what each of its hosts makes."""
    shares = [tuple(range(4))[host * 4 // hosts : (host + 1) * 4 // hosts] for host in range(hosts)]
    made = []
    for share in shares:
        with closing(loader(share=share, workers=workers)) as batches:
            made.append(take(batches, steps))
    by_step = zip(*made, strict=True)
    return [jax.tree.map(lambda *parts: np.concatenate(parts), *step) for step in by_step]


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize(
    "workers", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_neither_hosts_nor_workers_change_what_a_run_is_trained_on(hosts, workers):
    for step, batch in enumerate(global_batches(hosts, workers)):
        chex.assert_trees_all_equal(batch, loader().at(step), strict=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"rows": 0}, "a batch needs at least 1 row, not 0"),
        ({"share": (2, 4)}, "row 4 is not one of 4; count rows from 0"),
        ({"rows": 3}, "a batch of 3 rows is not a multiple of packing.window_rows 2"),
    ],
)
def test_batches_that_cannot_be_made_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        loader(**config)


def test_picture_batches_hold_the_pictures_and_a_caption_each():
    batch = pictures().at(0)
    assert batch.patches.shape == (6, 4, 48) and batch.tokens.shape == (6, 4)
    assert (batch.grids == 2).all()
    assert {len(set(batch.patches[row].ravel())) > 1 for row in range(6)} == {True}


def test_picture_captions_are_cut_counted_and_padded():
    short = pictures([example(0, captions=("a",))] * 6)
    batch = next(short)
    ids = tokenizer().encode("a")
    assert batch.tokens[0].tolist() == ids + [tokenizer().end_of_document] * (4 - len(ids))
    assert batch.lengths[0] == len(ids) and short.counts["truncated"] == 0
    long = pictures([example(0, captions=("a red dot on the left",))] * 6)
    assert (next(long).lengths == 4).all() and long.counts["truncated"] == 6


def test_picture_epochs_show_every_example_once():
    batches = [pictures().at(step) for step in range(3)]  # 18 pictures: two epochs of nine
    seen = np.concatenate([batch.patches.reshape(6, -1) for batch in batches])
    for epoch in (seen[:9], seen[9:]):
        assert len(np.unique(epoch, axis=0)) == 9


def test_the_shares_of_processes_are_pictures_of_the_same_global_batch():
    whole = pictures().at(2)
    for share in [(0, 1, 4, 5), (2, 3)]:
        part = pictures(share=share).at(2)
        chex.assert_trees_all_equal(share_of(whole, share), part, strict=True)


def test_a_picture_without_caption_is_replaced_by_the_next_and_counted():
    batches = pictures(Dots(6, bad={2: {"captions": ("",)}}))
    whole, made = pictures(Dots(6)).at(0), next(batches)
    same = (whole.patches == made.patches).all((1, 2))
    assert batches.counts["broken"] == 1 and same.sum() == 5


def test_a_source_without_a_usable_picture_names_the_last_reason():
    message = "100 examples in a row cannot be used; .* 'dots/0' has an empty caption"
    with pytest.raises(ValueError, match=message):
        pictures([example(0, captions=("",))] * 6).at(0)


def test_an_empty_picture_source_is_refused():
    with pytest.raises(ValueError, match="the source is empty"):
        how = PictureConfig(4, ImagePolicy())
        make_picture_loader([WeightedSource([])], tokenizer(), how, LoaderConfig(1), seed=0)


def test_the_cache_reads_each_example_once():
    source = Dots(5)
    cached = CachedSource(source, max_bytes=10**6)
    for _ in range(3):
        assert [cached[i].key for i in range(5)] == [f"dots/{i}" for i in range(5)]
    assert source.reads == 5


def test_the_cache_keeps_within_its_bound():
    source = Dots(50)
    cached = CachedSource(source, max_bytes=10_000)
    for _ in range(2):
        for index in range(50):
            cached[index]
    assert 0 < cached.bytes <= 10_000 and 50 < source.reads < 100
