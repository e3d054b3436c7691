"""Which document comes when, and what happens to bad examples."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest

from data_pipelines.faults import RecordError
from data_pipelines.sequences.mixture import DocumentStream, Entry, Mixture, mixture_of
from data_pipelines.sequences.packing import OverlongDocument, PackingConfig
from data_pipelines.sequences.tasks import BrokenExample
from data_pipelines.sources.traits import traits_of
from tests.data.samples import SMALL, Dots, Holes, tokenizer

WEIGHTS = {"text": 0.25, "text_to_image": 0.45, "image_to_text": 0.15, "edit": 0.15}


def stream(source, weights=None, slots=64, **options):
    mixture = mixture_of(weights or {"text_to_image": 1.0}, source, seed=5)
    return DocumentStream(mixture, tokenizer(), SMALL, PackingConfig(slots, 4), **options)


def keys(documents, count):
    return [documents.document(index)[0].key for index in range(count)]


def test_a_thousand_documents_have_the_weights_exactly():
    mixture = mixture_of(WEIGHTS, Dots(), seed=0)
    tasks = Counter(mixture.entries[mixture.pick(i).entry].task for i in range(3000, 4000))
    assert tasks == {"text": 250, "text_to_image": 450, "image_to_text": 150, "edit": 150}


@pytest.mark.parametrize("start", [0, 137, 960])
def test_a_short_run_has_nearly_the_weights(start):
    mixture = mixture_of(WEIGHTS, Dots(), seed=0)
    entries = [mixture.pick(i).entry for i in range(start, start + 40)]
    shares = np.bincount(entries, minlength=4) / 40
    np.testing.assert_allclose(shares, list(WEIGHTS.values()), atol=0.06)


def test_weights_that_do_not_divide_are_apportioned_to_the_nearest_thousandth():
    mixture = mixture_of({"text": 1, "edit": 1, "visual_qa": 1}, Dots(), seed=0)
    assert sorted(mixture.counts) == [333, 333, 334]


def test_a_task_counts_its_own_documents():
    mixture = mixture_of(WEIGHTS, Dots(), seed=0)
    ordinals = {entry: [] for entry in range(4)}
    for index in range(2500):
        pick = mixture.pick(index)
        ordinals[pick.entry].append(pick.ordinal)
    assert all(seen == list(range(len(seen))) for seen in ordinals.values())


def test_every_example_comes_once_an_epoch_and_epochs_differ_in_order():
    documents = stream(Dots(20))
    first, second = keys(documents, 40)[:20], keys(documents, 40)[20:]
    assert set(first) == set(second) == {f"dots/{i}" for i in range(20)}
    assert first != second


def test_a_task_of_two_examples_takes_them_in_turn():
    mixture = mixture_of({"several_images": 1.0}, Dots(20), seed=0)
    seen = [example.key for i in range(10) for example in mixture.examples(mixture.pick(i))]
    assert len(set(seen)) == 20


def test_tasks_can_read_different_sources():
    sources = {"text": Dots(3), "edit": Dots(7)}
    mixture = mixture_of({"text": 0.5, "edit": 0.5}, sources, seed=0)
    for index in range(20):
        mixture.examples(mixture.pick(index))
    assert sources["text"].reads == sources["edit"].reads == 10


def test_documents_are_a_pure_function_of_seed_and_index():
    one, two = (stream(Dots(), WEIGHTS) for _ in range(2))
    for index in (999, 3, 512):
        first, second = one.document(index)[0], two.document(index)[0]
        assert first.key == second.key
        np.testing.assert_array_equal(first.tokens, second.tokens)


def test_another_seed_gives_another_order():
    one, two = (mixture_of({"text": 1.0}, Dots(), seed=seed) for seed in (0, 1))
    order = [[m.examples(m.pick(i))[0].key for i in range(20)] for m in (one, two)]
    assert order[0] != order[1]


def test_a_skipped_example_is_replaced_by_the_next_and_counted():
    documents = stream(Dots(10, bad={4: {"captions": ("",)}}), broken="skip")
    clean = keys(stream(Dots(10)), 10)
    place = clean.index("dots/4")
    assert keys(documents, 10) == [key if key != "dots/4" else "dots/5" for key in clean]
    assert documents.document(place)[1] == {"broken": 1}


def test_a_record_that_cannot_be_read_is_replaced_by_the_next_and_counted_as_unreadable():
    documents, clean = stream(Holes(10, {4}), broken="skip"), keys(stream(Dots(10)), 10)
    place = clean.index("dots/4")
    assert keys(documents, 10) == [key if key != "dots/4" else "dots/5" for key in clean]
    assert documents.document(place)[1] == {"unreadable": 1}


def test_a_record_that_cannot_be_read_stops_the_run_when_asked():
    with pytest.raises(RecordError, match="dots/4"):
        keys(stream(Holes(10, {4})), 10)


def test_a_broken_example_stops_the_run_when_asked():
    with pytest.raises(BrokenExample, match="'dots/4' has an empty caption"):
        keys(stream(Dots(10, bad={4: {"captions": ("",)}})), 10)


LONG = {4: {"captions": ("a red dot " * 20,)}}


def test_an_overlong_document_is_skipped_and_counted_when_asked():
    documents = stream(Dots(10, bad=LONG), overlong="skip")
    skipped = sum((documents.document(i)[1] for i in range(10)), Counter())
    assert skipped == {"overlong": 1} and "dots/4" not in keys(documents, 10)


def test_an_overlong_document_stops_the_run_otherwise():
    with pytest.raises(OverlongDocument, match="'dots/4' takes .* set overlong='skip'"):
        keys(stream(Dots(10, bad=LONG)), 10)


def test_a_source_of_nothing_but_bad_examples_is_an_error():
    bad = {index: {"captions": ()} for index in range(3)}
    message = (
        "examples in a row cannot serve the task 'text_to_image', the last one because .*dots/"
    )
    with pytest.raises(ValueError, match=message):
        stream(Dots(3, bad=bad), broken="skip").document(0)


def test_all_documents_overlong_is_an_error():
    with pytest.raises(ValueError, match="cannot serve .*, .* takes .* raise sequence_length"):
        stream(Dots(3), slots=4, overlong="skip").document(0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"painting": 1.0}, "task 'painting' is unknown; choose from text, text_to_image"),
        ({"text": -1.0}, "task 'text' has weight -1.0; weights must be positive"),
        ({"text": 1.0, "edit": 1e-5}, "task 'edit' gets less than 1 in 1000"),
        ({"text": 0.0}, "the mixture is empty"),
    ],
)
def test_mixtures_that_cannot_work_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        mixture_of(weights, Dots(), seed=0)


def test_an_empty_source_is_named():
    with pytest.raises(ValueError, match="the source of task 'text' is empty"):
        Mixture([Entry("text", 1.0, [])], seed=0)


def test_a_task_without_source_is_named():
    with pytest.raises(ValueError, match="task 'edit' has no source"):
        mixture_of({"text": 1.0, "edit": 1.0}, {"text": Dots()}, seed=0)


def test_unknown_choices_are_refused():
    with pytest.raises(ValueError, match="broken 'ignore' is unknown; choose error or skip"):
        stream(Dots(), broken="ignore")


def test_dropout_of_pictures_reaches_the_documents():
    """Of an edit the picture goes, and the first turn then has only the words."""

    def pictures(**dropout):
        config = dataclasses.replace(SMALL, **dropout)
        mixture = mixture_of({"edit": 1.0}, Dots(), seed=0)
        stream = DocumentStream(mixture, tokenizer(), config, PackingConfig(64, 4))
        return len(stream.document(0)[0].grids)

    assert (pictures(), pictures(image_dropout=1.0)) == (2, 1)


def test_dropout_reaches_the_documents():
    config = dataclasses.replace(SMALL, cfg_dropout=1.0)
    mixture = mixture_of({"text_to_image": 1.0}, Dots(), seed=0)
    documents = DocumentStream(mixture, tokenizer(), config, PackingConfig(64, 4))
    assert len(documents.document(0)[0]) == 2 + 1 + 4  # an empty turn, the mark, four noisy tokens


# ---- records that can serve a task ------------------------------------------------------------


class Known(Dots):
    """As `Dots`, and it knows what its records can serve."""

    def traits(self):
        return np.array([traits_of(self[index]) for index in range(len(self))], np.uint8)


def rare(size, having, field="edits"):
    return Known(size, bad={index: {field: ()} for index in range(size) if index not in having})


def test_a_task_draws_evenly_from_the_few_records_that_can_serve_it():
    having = {3, 4, 5, 250, 251, 399}  # in clusters, far apart
    documents = stream(rare(400, having), {"edit": 1.0}, broken="skip")
    assert Counter(keys(documents, 60)) == {f"dots/{index}": 10 for index in having}
    assert all(not documents.document(index)[1] for index in range(60))


def test_the_other_tasks_draw_from_all_records():
    documents = stream(rare(40, {7}), {"edit": 0.5, "text_to_image": 0.5})
    drawn = {"edit": Counter(), "text_to_image": Counter()}
    for index in range(80):
        task = documents.mixture.entries[documents.mixture.pick(index).entry].task
        drawn[task][documents.document(index)[0].key] += 1
    assert len(drawn["text_to_image"]) == 40 and set(drawn["edit"]) == {"dots/7"}


def test_an_interleaved_document_needs_questions_or_edits():
    bad = {index: {"questions": (), "edits": ()} for index in range(9)}
    bad[3], bad[6] = {"questions": ()}, {"edits": ()}
    documents = stream(Known(10, bad), {"interleaved": 1.0}, slots=200)
    assert set(keys(documents, 30)) == {"dots/3", "dots/6", "dots/9"}


def test_a_task_that_no_record_can_serve_is_named_at_once():
    with pytest.raises(ValueError, match=r"no record of .* has edits, which the task 'edit' needs"):
        stream(rare(10, ()), {"edit": 1.0})
    stream(rare(10, ()), {"edit": 0.0, "text": 1.0})


def test_where_all_records_can_serve_nothing_changes():
    one, two = (stream(source(30), WEIGHTS) for source in (Dots, Known))
    assert keys(one, 50) == keys(two, 50)
