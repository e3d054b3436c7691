"""Several sources a run: exact shares, one order for every number of hosts, and what is refused."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter

import numpy as np
import pytest

from data_pipelines.batches import document_stream, document_tokens, picture_loader, row_facts
from data_pipelines.batches import unified_loader as rows_of_stage
from data_pipelines.build import evaluates_on_training_data, load_or_train_tokenizer, open_examples
from data_pipelines.faults import SourceError
from data_pipelines.sources.configured import configured_sources, narrow, part_weights
from data_pipelines.sources.split import EVALUATION, TRAIN
from tests.data.mixed import entries, mixed_config, six_formats, write_sources
from tests.data.packed import pack
from tests.data.samples import tokenizer
from tests.tiny import tiny_config
from unicom_jax.runs.stages import data_seed

SHARES = {
    ("photos", "text_to_image"): 300,
    ("photos", "image_to_text"): 100,
    ("words", "document"): 300,
    ("pages", "document"): 100,
    ("edits", "edit"): 100,
    ("scenes", "visual_qa"): 100,
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture
def config(paths):
    return mixed_config(entries(paths), pretrain__window_documents=12)


def origins(stream, indices):
    """(source, task) of documents."""
    chosen = (stream.mixture.entries[stream.mixture.pick(index).entry] for index in indices)
    return Counter((entry.origin, entry.task) for entry in chosen)


def keys_of(stream, count):
    return [stream.document(index)[0].key for index in range(count)]


# ---- shares ------------------------------------------------------------------------------------


def test_a_block_has_the_shares_of_sources_and_tasks_exactly(config):
    stream = document_stream(config, "pretrain", tokenizer())
    assert origins(stream, range(4000, 5000)) == SHARES


def test_a_document_is_of_the_source_and_task_of_its_place(config):
    stream = document_stream(config, "pretrain", tokenizer())
    for index in range(30):
        ((source, task),) = origins(stream, [index])
        document, skipped = stream.document(index)
        where = {"edits": "dots/", "scenes": "scene"}.get(source, f"{source}/")
        assert where in document.key and not skipped
        pictures = {"words": 0, "pages": 1, "edits": 2}.get(source, 1)
        assert len(document.grids) == pictures, (source, task)


def test_a_stage_reads_the_sources_that_name_it(paths):
    sources = entries(paths)
    sources[1]["stages"], sources[3]["stages"] = ("sft",), ("pretrain", "sft")
    config = mixed_config(sources)
    config.sft.mixture.update(config.pretrain.mixture)
    names = {
        stage: [one.name for one in configured_sources(config, stage)]
        for stage in ("sft", "pretrain", "codec")
    }
    assert names["sft"] == ["photos", "words", "pages", "edits", "scenes"]
    assert names["pretrain"] == ["photos", "pages", "edits", "scenes"]
    assert names["codec"] == ["photos", "pages", "scenes"]
    assert ("words", "document") not in part_weights(config, "pretrain")


def test_weights_by_tokens_are_shares_of_the_slots_to_a_few_percent(config, monkeypatch):
    monkeypatch.setattr("data_pipelines.batches.TOKEN_PROBES", 32)
    config.data.weight_unit = "tokens"
    stream = document_stream(config, "pretrain", tokenizer())
    slots: Counter = Counter()
    for index in range(500):
        entry = stream.mixture.entries[stream.mixture.pick(index).entry]
        slots[entry.origin, entry.task] += len(stream.document(index)[0])
    shares = {part: 1000 * count / slots.total() for part, count in slots.items()}
    assert shares == pytest.approx(SHARES, rel=0.05)
    config.data.weight_unit = "documents"
    by_documents = document_stream(config, "pretrain", tokenizer()).mixture.counts
    assert max(np.abs(np.subtract(stream.mixture.counts, by_documents))) > 50


def test_weights_by_tokens_hold_for_the_tasks_of_one_source_too():
    config = tiny_config(data__weight_unit="tokens")
    config.pretrain.document_tokens = (("text_to_image", 10.0), ("visual_qa", 20.0), ("edit", 40.0))
    mixture = document_stream(config, "pretrain", tokenizer()).mixture
    counts = {entry.task: n for entry, n in zip(mixture.entries, mixture.counts, strict=True)}
    assert counts == {"text_to_image": 714, "visual_qa": 214, "edit": 72}  # 0.05, 0.015, 0.005


def test_the_length_of_documents_is_measured_for_each_source_and_task(config, monkeypatch):
    monkeypatch.setattr("data_pipelines.batches.TOKEN_PROBES", 4)
    measured = dict(document_tokens(config, "pretrain", tokenizer()))
    assert measured.keys() == {"/".join(part) for part in SHARES}
    assert measured["words/document"] > measured["photos/text_to_image"] > 0


# ---- the same batches everywhere ---------------------------------------------------------------


def rows_of(batch):
    """What identifies each row, wherever its window has put it."""
    parts = (batch.tokens, batch.targets, batch.target_weights, batch.patches)
    digests = []
    for row in zip(*parts, strict=True):
        digest = hashlib.sha256()
        for part in row:
            digest.update(np.ascontiguousarray(part).tobytes())
        digests.append(digest.hexdigest()[:16])
    return digests


def test_a_resumed_run_on_other_hosts_and_workers_has_the_same_samples(config):
    config.pretrain.batch_size, config.pretrain.window_rows = 8, 4
    whole = rows_of_stage(config, "pretrain", tokenizer(), seed=3)
    expected = [rows_of(next(whole)) for _ in range(3)]
    whole.close()
    assert len(set(itertools.chain(*expected))) == 24
    for share, workers in (((0, 1, 2, 3, 4), 0), ((5, 6, 7), 1)):
        config.data.workers = workers
        host = rows_of_stage(config, "pretrain", tokenizer(), start=1, share=share, seed=3)
        found = [rows_of(next(host)) for _ in range(2)]
        host.close()
        assert found == [[batch[row] for row in share] for batch in expected[1:]]


@pytest.mark.parametrize("unit", ["documents", "tokens"])
def test_six_sources_of_six_formats_give_the_same_samples_on_any_number_of_hosts_and_workers(
    paths, tmp_path, monkeypatch, unit
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("data_pipelines.batches.TOKEN_PROBES", 8)
    config = mixed_config(
        six_formats(paths, tmp_path),
        data__weight_unit=unit,
        pretrain__window_documents=12,
        pretrain__batch_size=8,
        pretrain__mixture__visual_qa=0.0,
    )
    if unit == "tokens":  # measured once a run, and kept in its data.json
        measured = document_tokens(config, "pretrain", tokenizer())
        config.pretrain.document_tokens = measured
    stream = document_stream(config, "pretrain", tokenizer())
    tasks = Counter()
    for (_, task), count in origins(stream, range(1000)).items():
        tasks[task] += count
    shares = (tasks["text"], tasks["text_to_image"], tasks["document"], tasks["edit"])
    assert (shares == (250, 450, 50, 50)) == (unit == "documents")
    assert not sum((stream.document(index)[1] for index in range(60)), Counter())
    whole = rows_of_stage(config, "pretrain", tokenizer())
    expected = [rows_of(next(whole)) for _ in range(4)]
    whole.close()
    # Stopped after two steps of one host, then resumed on two hosts, later on four.
    for start, stop, hosts, workers in ((2, 3, 2, 2 * (unit == "documents")), (3, 4, 4, 0)):
        config.data.workers = workers
        for host in range(hosts):
            share = tuple(range(8 * host // hosts, 8 * (host + 1) // hosts))
            part = rows_of_stage(config, "pretrain", tokenizer(), start=start, share=share)
            found = [rows_of(next(part)) for _ in range(start, stop)]
            part.close()
            assert found == [[batch[row] for row in share] for batch in expected[start:stop]]
            if workers:
                break  # processes take a while to start, and the other host's rows are alike


def test_batches_count_their_documents_by_task_and_source(config):
    loader = rows_of_stage(config, "pretrain", tokenizer())
    for _ in range(3):
        next(loader)
    loader.close()
    counts = loader.counts
    names = {name for name, _ in SHARES}
    assert sum(counts[f"source/{name}"] for name in names) == counts["documents"]
    assert sum(counts[f"source_slots/{name}"] for name in names) == counts["slots"]
    assert counts["task/document"] == counts["source/words"] + counts["source/pages"] > 0


def test_packed_rows_of_several_sources_are_those_that_a_run_would_pack(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr("data_pipelines.batches.TOKEN_PROBES", 8)
    config.pretrain.steps = config.pretrain.eval_batches = 1
    config.data.weight_unit = "tokens"
    pack(config, tokenizer(), tmp_path)
    seed = data_seed(config, "pretrain")
    made = rows_of_stage(config, "pretrain", tokenizer(), seed=seed).at(0)
    config.data.packed = str(tmp_path)
    ready = rows_of_stage(config, "pretrain", tokenizer(), seed=seed)
    assert rows_of(ready.at(0)) == rows_of(made)
    config.data.sources[2]["weight"] = 2.0
    with pytest.raises(SourceError, match=r"made with sources.pages.weight=1.0, now it is 2.0"):
        rows_of_stage(config, "pretrain", tokenizer(), seed=seed)


# Of a version that knew data.source alone.
GOLDEN_ROWS = ["063ec61c3e5f012b", "6d164ea788434026", "ca4ed7e75dd24dc6", "dad771f7fa627283"]
GOLDEN_PICTURES = "fd18d100ac55370e"


def test_one_source_has_the_batches_that_it_had_before_there_could_be_several():
    config = tiny_config(pretrain__window_documents=20, data__vocab_size=300, data__fill_rows=False)
    words = load_or_train_tokenizer(config, None)
    batch = rows_of_stage(config, "pretrain", words, seed=7).at(3)
    pictures = picture_loader(config, "codec", words, seed=7).at(3)
    digest = hashlib.sha256()
    for part in pictures:
        digest.update(np.ascontiguousarray(part).tobytes())
    assert sorted(rows_of(batch)) == GOLDEN_ROWS
    assert digest.hexdigest()[:16] == GOLDEN_PICTURES
    facts = row_facts(config, "pretrain")
    assert facts["source"].keys() == {"kind", "seed", "size", "scene", "with_edits"}
    assert facts["mixture"] == {"text_to_image": 0.5, "visual_qa": 0.3, "edit": 0.2}
    assert not facts.keys() & {"sources", "weight_unit"}


# ---- pictures, words, held-out records ---------------------------------------------------------


def test_stages_of_pictures_read_the_sources_that_have_some_by_their_weights(config):
    loader = picture_loader(config, "codec", tokenizer())
    for _ in range(15):
        next(loader)
    loader.close()
    sources = {name: n for name, n in loader.counts.items() if name.startswith("source/")}
    assert sources.keys() == {"source/photos", "source/edits", "source/scenes"}
    assert sources["source/photos"] == pytest.approx(60 * 4 / 6, abs=2)


def test_a_tokenizer_learns_the_words_of_every_source(config):
    config.data.vocab_size = 320
    words = load_or_train_tokenizer(config, None)
    for text in (" gray", " page", " brighter", " green"):  # photos, words, pages, edits
        assert len(words.encode(text)) < len(text)


def test_scores_are_of_the_held_out_records_of_all_sources_with_pictures(config):
    held_out = open_examples(config, EVALUATION)
    parts = [len(part) for part in held_out.sources]
    assert len(held_out) == sum(parts) and parts[-1] == 50
    assert "photos" in held_out[0].key and "scene" in held_out[len(held_out) - 1].key
    trained = {one.key for part in open_examples(config, TRAIN).sources for one in part}
    assert trained.isdisjoint(one.key for one in held_out)


def test_one_source_that_holds_nothing_out_is_known(config):
    assert not evaluates_on_training_data(config)
    config.data.sources[1]["held_out"] = 0.0
    assert evaluates_on_training_data(config)


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ({"task": "document"}, {("words", "document"): 3.0, ("pages", "document"): 1.0}),
        ({"task": "visual_qa"}, {("scenes", "visual_qa"): 1.0}),
        (
            {"source": "photos"},
            {("photos", "text_to_image"): 3.0, ("photos", "image_to_text"): 1.0},
        ),
    ],
)
def test_one_task_or_source_of_a_mixture_can_be_read_alone(config, wanted, left):
    narrow(config, "pretrain", **wanted)
    assert part_weights(config, "pretrain") == left
    assert document_stream(config, "pretrain", tokenizer(), EVALUATION).document(0)


# ---- what is refused ---------------------------------------------------------------------------


def changed(paths, index, **fields):
    sources = entries(paths)
    sources[index] |= fields
    return mixed_config(sources)


@pytest.mark.parametrize(
    ("index", "fields", "message"),
    [
        (0, {"tasks": "document"}, r"no record of .*photos.* has segments, which the task 'docume"),
        (1, {"tasks": "text"}, r"data.sources\[1\]: kind 'documents' has finished documents, wh"),
        (4, {"tasks": "document"}, r"scenes has pictures with texts such as 'scene"),
        (0, {"tasks": "edit"}, r"no record of .*photos.* has edits, which the task 'edit' needs"),
        (0, {"name": "words"}, r"data.sources\[0\] has the same name as another of data.sources"),
        (0, {"name": "a/b"}, r"data.sources\[0\].name='a/b': use letters, digits"),
        (0, {"weight": 1e-4}, r"task .* of source 'photos' gets less than 1 in 1000"),
        (4, {"path": "here"}, r"data.sources\[4\].path='here' does nothing for kind 'scenes'"),
        (1, {"split": "test"}, r"data.sources\[1\].split='test' does nothing for kind 'documents"),
        (3, {"size": 7}, r"data.sources\[3\].size=7 does nothing for kind 'array_record'"),
        (3, {"path": "gone"}, r"data.sources\[3\] \(gone\): gone: no .array_record file there"),
        (0, {"held_out": 0.999}, r"data.sources\[0\] \(photos\): data.sources\[0\].held_out=0.9"),
    ],
)
def test_what_cannot_be_mixed_is_refused_in_one_line_that_names_the_source(
    paths, index, fields, message
):
    with pytest.raises(ValueError, match=message) as caught:
        keys_of(document_stream(changed(paths, index, **fields), "pretrain", tokenizer()), 40)
    assert "\n" not in str(caught.value)


def test_stages_of_pictures_refuse_documents_and_need_a_source(paths):
    with pytest.raises(SourceError, match=r"data.sources\[1\]: the stage 'codec' reads pictures"):
        picture_loader(changed(paths, 1, stages=("codec",)), "codec", tokenizer())
    with pytest.raises(SourceError, match="no source of data.sources has pictures with captions"):
        picture_loader(mixed_config(entries(paths)[1:3]), "codec", tokenizer())
    alone = tiny_config(data__source__kind="documents", data__source__path=str(paths["words"]))
    with pytest.raises(SourceError, match="no source of data.source has pictures with captions"):
        picture_loader(alone, "codec", tokenizer())
