"""Rows filled up with further documents: nearly full, the same everywhere, with nothing bent."""

from __future__ import annotations

from collections import Counter

import chex
import numpy as np
import pytest

from data_pipelines.examples import Example
from data_pipelines.loading.loader import LoaderConfig, choose_window_documents, make_loader
from data_pipelines.sequences.document import MASK_FIELDS, first_slots
from data_pipelines.sequences.filling import LEAST, further_documents
from data_pipelines.sequences.mixture import DocumentStream, mixture_of
from data_pipelines.sequences.packing import PackingConfig
from tests.data.samples import SMALL, Dots, tokenizer
from unicom_jax.core.batch import Role

SLOTS = 160


class Pages(list):
    """Texts of very different lengths."""

    def __init__(self) -> None:
        lengths = np.random.default_rng(0).lognormal(2.7, 0.8, 60).astype(int) + 2
        super().__init__(
            Example(f"page/{i}", None, (" ".join(["red dot", "green"] * n)[: 6 * n],))
            for i, n in enumerate(lengths)
        )


def stream(fill=True, weights=(0.25, 0.45, 0.3), seed=0, window_rows=4):
    sources = {"text": Pages(), "text_to_image": Dots(40), "edit": Dots(40)}
    mixture = mixture_of(dict(zip(sources, weights, strict=True)), sources, seed)
    packing = PackingConfig(slots=SLOTS, images=12, window_rows=window_rows, fill=fill)
    return DocumentStream(mixture, tokenizer(), SMALL, packing)


def batches(rows=4, **options):
    made = stream(**options)
    documents = choose_window_documents(made)
    return make_loader(made, LoaderConfig(rows), window_documents=documents), documents


def counted(loader, steps=12):
    with_counts = [loader._make(step) for step in range(steps)]
    return sum((counts for _, counts in with_counts), Counter())


def test_rows_of_texts_pictures_and_edits_are_nearly_full_and_were_not():
    full, empty = (counted(batches(fill=fill)[0]) for fill in (True, False))
    assert full["slots"] / full["room"] > 0.97 > 0.9 > empty["slots"] / empty["room"]
    assert full["left_over"] <= 0.01 * full["documents"]
    assert full["further"] > 0 and "further" not in empty


def test_pictures_alone_fill_rows_as_far_as_whole_documents_do():
    alone = counted(batches(weights=(0.0, 0.6, 0.4))[0])
    plain = counted(batches(weights=(0.0, 0.6, 0.4), fill=False)[0])
    assert alone["slots"] / alone["room"] > plain["slots"] / plain["room"]


def test_the_shares_of_tasks_stay_near_the_mixture():
    counts = counted(batches()[0], steps=40)
    for task, share in (("text", 0.25), ("text_to_image", 0.45), ("edit", 0.3)):
        assert counts[f"task/{task}"] / counts["documents"] == pytest.approx(share, abs=0.08)


def test_every_record_keeps_its_turn(monkeypatch):
    """What fills rows comes on top: the documents of a window are all there."""
    loader, documents = batches()
    seen = Counter()
    tally = type(loader._make.stream.mixture).tally

    def noted(mixture, used):
        used = list(used)
        if mixture is loader._make.stream.mixture:
            seen.update(index for index, _ in used)
        return tally(mixture, used)

    monkeypatch.setattr(type(loader._make.stream.mixture), "tally", noted)
    counts = counted(loader, steps=10)
    assert set(seen.values()) == {1}
    assert len(seen) == 10 * documents - counts["left_over"]


def test_filled_batches_are_the_same_in_any_share_and_order():
    loader, documents = batches(rows=8)
    whole = loader.at(2)
    for share in ((0, 1, 2), (3, 4, 5, 6, 7)):
        config = LoaderConfig(8, share)
        part = make_loader(stream(), config, window_documents=documents).at(2)
        chex.assert_trees_all_equal(part, chex_rows(whole, share))


def chex_rows(batch, rows):
    return type(batch)(
        **{
            name: None if leaf is None else leaf[list(rows)]
            for name, leaf in vars(batch).items()
            if name != "mask"
        },
        mask=type(batch.mask)(*(getattr(batch.mask, name)[list(rows)] for name in MASK_FIELDS)),
    )


def test_another_order_than_that_of_the_windows_documents_fills_them():
    made = stream()
    again = made.mixture.again()
    keys = [[m.examples(m.pick(i))[0].key for i in range(60)] for m in (made.mixture, again)]
    assert keys[0] != keys[1]


def test_a_text_is_cut_where_its_row_ends_and_predicts_the_token_behind():
    texts = stream(weights=(1.0, 0.0, 0.0))
    ((further,),) = further_documents([(24, 4, 4, 8)], texts, 0, Counter())
    whole, _ = texts.document(further.index)
    document = further.document
    assert len(document) == 24 < len(whole)
    np.testing.assert_array_equal(document.tokens, whole.tokens[:24])
    assert document.targets[-1] == whole.tokens[24] and document.target_weights[-1] == 1
    assert (document.mask.context_stop <= 24).all() and (document.roles == Role.TEXT).all()


def test_pictures_are_never_cut_and_small_gaps_stay_empty():
    pictured = stream(weights=(0.0, 0.5, 0.5))
    counts: Counter = Counter()
    assert further_documents([(12, 4, 4, 8)], pictured, 0, counts) == [[]]
    assert further_documents([(LEAST - 1, 4, 4, 8)], stream(), 0, counts) == [[]]
    assert further_documents([(SLOTS, 0, 0, 0)], pictured, 0, counts) == [
        []
    ]  # no place for pictures
    assert counts["further"] == 0


def test_the_first_slots_of_a_document_are_a_document():
    whole, _ = stream(weights=(1.0, 0.0, 0.0)).document(3)
    assert len(first_slots(whole, 10)) == 10
    chex.assert_trees_all_equal(first_slots(whole, len(whole)).mask, whole.mask)
