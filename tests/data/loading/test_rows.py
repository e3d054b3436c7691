"""Packed rows on disk: they are the rows that a loader packs, and only complete files count."""

from __future__ import annotations

import dataclasses
import json
import pickle
import shutil

import chex
import msgpack
import numpy as np
import pytest

from data_pipelines.batches import row_facts
from data_pipelines.build import load_or_train_tokenizer
from data_pipelines.faults import RecordError, SourceError
from data_pipelines.loading.rows import (
    DTYPES,
    Row,
    check_facts,
    decode_row,
    encode_row,
    plain,
    rows_of,
)
from data_pipelines.preparation import prepare_rows
from tests.data.loading.test_loader import loader, share_of, take
from tests.data.packed import begin, pack
from tests.data.samples import tokenizer as other_tokenizer
from tests.tiny import tiny_config
from unicom_jax.core.batch import Role
from unicom_jax.runs.loading import stage_loader


def small(**overrides):
    """16 rows to train on and 4 held out, in windows of 2."""
    shape = {"window_rows": 2, "eval_batches": 1, "sequence_length": 64}
    shape = {f"pretrain__{key}": value for key, value in shape.items()}
    return tiny_config(**{**shape, **overrides})


@pytest.fixture(scope="module")
def tokenizer():
    return load_or_train_tokenizer(small(), None)


@pytest.fixture(scope="module")
def packed(tokenizer, tmp_path_factory):
    """Not to be changed."""
    return pack(small(), tokenizer, tmp_path_factory.mktemp("packed"))


def batches(config, tokenizer, packed="", **options):
    config.data.packed = str(packed)
    return stage_loader(config, "pretrain", tokenizer, **options)


# ---- records ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_survives_its_bytes(dtype):
    (row, *_) = rows_of(loader().at(0))
    with_features = dataclasses.replace(
        row, patches=None, features=np.arange(24.0).reshape(1, 4, 6).astype(DTYPES[dtype])
    )
    for batch in (row, with_features):
        found = decode_row(encode_row(Row(batch, {"documents": 3})), "here")
        chex.assert_trees_all_equal(found.batch, batch)
        chex.assert_trees_all_equal_shapes_and_dtypes(found.batch, batch)
        assert found.counts == {"documents": 3}


def test_a_row_from_before_draws_were_recorded_has_a_draw_for_each_drawn_image():
    (row, *_) = rows_of(loader().at(0))
    content = msgpack.unpackb(encode_row(Row(row, {})))
    del content["fields"]["draws"]
    drawn = row.image_index[row.roles == Role.NOISY]
    found = decode_row(msgpack.packb(content), "here").batch.draws
    assert found.dtype == np.int32 and len(found) == len(row.grids)
    assert set(np.flatnonzero(found >= 0)) == set(drawn)
    np.testing.assert_array_equal(found[drawn], drawn)


@pytest.mark.parametrize("data", [b"\xc1", encode_row(Row(next(rows_of(loader().at(0))), {}))[:99]])
def test_a_broken_row_is_one_line_that_names_file_and_index(data):
    with pytest.raises(RecordError, match=r"a.array_record record 5: broken row") as caught:
        decode_row(data, "a.array_record record 5")
    assert "\n" not in str(caught.value)


# ---- the stream -------------------------------------------------------------------------------


@pytest.mark.parametrize(("split", "steps"), [("train", 4), ("eval", 1)])
def test_packed_rows_are_those_of_the_pipeline_with_their_counts(packed, tokenizer, split, steps):
    ready = batches(small(), tokenizer, packed, split=split)
    made = batches(small(), tokenizer, split=split)
    for left, right in zip(take(ready, steps), take(made, steps), strict=True):
        chex.assert_trees_all_equal(left, right)
    assert ready.counts == made.counts


def test_a_batch_of_another_size_takes_the_same_rows_in_the_same_order(packed, tokenizer):
    config = small(pretrain__batch_size=6)
    for step in range(2):
        chex.assert_trees_all_equal(
            batches(config, tokenizer, packed).at(step), batches(config, tokenizer).at(step)
        )


def test_the_shares_of_hosts_are_rows_of_the_same_batch(packed, tokenizer):
    whole = batches(small(), tokenizer, packed).at(1)
    for share in [(0, 2), (1, 3), (3,)]:
        part = batches(small(), tokenizer, packed, share=share).at(1)
        chex.assert_trees_all_equal(share_of(whole, share), part, strict=True)


def test_rows_come_again_in_another_order_when_all_were_used(packed, tokenizer):
    stream = batches(small(), tokenizer, packed)
    rows = [[row.tokens.tobytes() for row in rows_of(stream.at(step))] for step in range(12)]
    passes = [sum(rows[start : start + 4], []) for start in (0, 4, 8)]
    assert len({tuple(order) for order in passes}) == 3
    assert len({tuple(sorted(order)) for order in passes}) == 1


def test_what_reads_rows_can_be_sent_to_a_process(packed, tokenizer):
    stream = batches(small(), tokenizer, packed)
    chex.assert_trees_all_equal(pickle.loads(pickle.dumps(stream._make))(2)[0], stream.at(2))


def test_the_tokenizer_comes_with_the_rows(packed, tokenizer):
    config = small(data__packed=str(packed), data__source__kind="folder")  # that is not there
    assert load_or_train_tokenizer(config, None).fingerprint() == tokenizer.fingerprint()


def test_a_run_whose_dropped_words_are_masked_has_a_token_for_them(tokenizer, tmp_path):
    config = small(data__unconditional="masked", pretrain__cfg_dropout=1.0)
    own = load_or_train_tokenizer(config, tmp_path)
    no_mean = own.require("no_mean")
    assert no_mean == tokenizer.vocab_size  # behind those of any other run
    assert load_or_train_tokenizer(config, tmp_path).fingerprint() == own.fingerprint()
    batch = batches(config, own).at(0)
    usual = batches(small(pretrain__cfg_dropout=0.0), tokenizer).at(0)
    masked = batch.tokens == no_mean
    assert masked.any() and (batch.roles[masked] == Role.TEXT).all()
    np.testing.assert_array_equal(batch.tokens[~masked], usual.tokens[~masked])
    np.testing.assert_array_equal(batch.targets, usual.targets)


# ---- rows of another run ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ({"seed": 1}, "seed=0, now it is 1"),
        ({"pretrain__noisy_copies": 2}, "sequence.noisy_copies=1, now it is 2"),
        ({"pretrain__mixture__edit": 0.5}, "mixture.edit=0.2, now it is 0.5"),
        ({"data__image_size": 48}, "sequence.images.size=32, now it is 48"),
        ({"data__scenes__jitter": 0.1}, "source.scene.jitter=0.025, now it is 0.1"),
    ],
)
def test_rows_of_another_configuration_are_refused_by_the_key(packed, tokenizer, overrides, key):
    with pytest.raises(SourceError, match=f"pretrain: the rows were made with {key}") as caught:
        batches(small(**overrides), tokenizer, packed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["array_record", "folder", "tfds"])
def test_data_may_move_but_not_become_others(kind):
    def facts(path):
        return row_facts(small(data__source__kind=kind, data__source__path=path), "pretrain")

    check_facts(facts("/mnt/data/birds"), plain(facts("data/birds/")), "rows made with")
    with pytest.raises(SourceError, match="made with source.path='birds', now it is 'fish'"):
        check_facts(facts("data/fish"), plain(facts("data/birds")), "rows made with")


def test_rows_from_before_a_fact_was_recorded_are_still_accepted():
    facts = row_facts(small(data__source__kind="folder", data__source__path="birds"), "pretrain")
    older = plain(facts)
    del older["source"]["path"], older["packing"]["balance"]
    facts["packing"]["balance"] = False
    check_facts(facts, older, "rows made with")
    facts["packing"]["balance"] = True
    with pytest.raises(SourceError, match="made with packing.balance=False, now it is True"):
        check_facts(facts, older, "rows made with")
    facts["packing"]["balance"] = False
    older["mixture"]["text"] = 9.0
    with pytest.raises(SourceError, match="mixture.text=9.0"):
        check_facts(facts, older, "rows made with")


def test_facts_that_came_later_are_recorded_where_they_are_set():
    """So a run from before has the facts that it had, and keeps its number of documents."""
    facts = row_facts(small(data__balance_rows=False, data__fill_rows=False), "pretrain")
    assert facts["packing"].keys() == {"slots", "images", "window_rows", "draws"}
    assert facts["sequence"].keys() == {
        *("patch", "images", "pool", "fold", "understanding", "edit_source", "cfg_dropout"),
        *("image_dropout", "noisy_copies", "prompt_open", "prompt_close", "response_close"),
    }
    changed = {"data__unconditional": "masked", "unified__image_positions": "plain"}
    masked = row_facts(small(**changed), "pretrain")
    assert row_facts(small(unified__edit_words="before"), "pretrain")["sequence"]["edit_words"]
    assert masked["packing"]["balance"] is True
    message = "made with sequence.image_positions='grid', now it is 'plain'"
    with pytest.raises(SourceError, match=message):
        check_facts({**masked, "packing": facts["packing"]}, plain(facts), "rows made with")


def test_rows_of_another_tokenizer_are_refused(packed):
    with pytest.raises(SourceError, match="the rows were made with tokenizer='"):
        batches(small(), other_tokenizer(), packed)


def test_a_stage_without_rows_names_the_command(packed, tokenizer):
    config = small(data__packed=str(packed))
    with pytest.raises(SourceError, match="no rows for stage 'sft': run `unicom data prepare pack"):
        stage_loader(config, "sft", tokenizer)


def test_how_batches_are_made_may_change(packed, tokenizer):
    config = small(data__workers=2, data__cache_mb=0, pretrain__learning_rate=1.0)
    batches(config, tokenizer, packed)


# ---- a preparation that stops -----------------------------------------------------------------


def test_a_stopped_preparation_resumes_with_the_missing_files_and_ends_the_same(
    packed, tokenizer, tmp_path
):
    plan, shards, missing = begin(small(), tokenizer, tmp_path)
    assert missing == shards and len(shards) == 8 + 2
    for shard in shards[:3]:
        prepare_rows.write_shard(plan, shard)
    (tmp_path / "pretrain" / f"{shards[3].name}-1a.unfinished").write_bytes(b"half")
    with pytest.raises(SourceError, match="manifest.json: the preparation is not complete: run"):
        batches(small(), tokenizer, tmp_path)
    with pytest.raises(SourceError, match=f"7 of 10 files are missing, {shards[3].name} first"):
        prepare_rows.finish(plan, shards)
    kept = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/*.array_record"))]
    assert begin(small(), tokenizer, tmp_path)[2] == shards[3:]
    pack(small(), tokenizer, tmp_path)
    files = sorted(path.name for path in (packed / "pretrain").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "pretrain").iterdir())
    for name in files:
        left, right = (folder / "pretrain" / name for folder in (packed, tmp_path))
        assert left.read_bytes() == right.read_bytes(), name
    written = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/train*.array_record"))]
    assert written[:3] == kept


def test_a_preparation_that_resumes_keeps_the_documents_of_a_window(
    tokenizer, tmp_path, monkeypatch
):
    first = begin(small(), tokenizer, tmp_path)[0].window_documents
    monkeypatch.setattr(prepare_rows, "window_documents", lambda *_: first + 1)
    assert begin(small(), tokenizer, tmp_path)[0].window_documents == first
    assert begin(small(), tokenizer, tmp_path / "new")[0].window_documents == first + 1


def test_a_folder_of_another_preparation_is_refused(packed, tokenizer):
    with pytest.raises(SourceError, match="holds rows made with splits.train.rows=16, now it is 8"):
        begin(small(), tokenizer, packed, rows=8)


def test_what_a_worker_cannot_pack_is_reported_in_one_line_and_leaves_no_file(tokenizer, tmp_path):
    config = small(pretrain__sequence_length=8, pretrain__overlong="skip")
    plan, shards, _ = begin(small(), tokenizer, tmp_path)
    plan = dataclasses.replace(plan, config=repr(config.to_dict()))
    prepare_rows.write_shard(plan, shards[0])
    assert list(tmp_path.glob("*/*.array_record")) == []
    with pytest.raises(SourceError, match="examples in a row cannot serve the task"):
        prepare_rows.finish(plan, shards)


def test_a_lost_file_of_rows_is_named(packed, tokenizer, tmp_path):
    pack(small(), tokenizer, tmp_path)
    (tmp_path / "pretrain/train-00002-of-00008.array_record").unlink()
    with pytest.raises(SourceError, match="pretrain: holds 7 of 8 train files: copy"):
        batches(small(), tokenizer, tmp_path)


def test_unreadable_rows_are_counted_with_their_documents(packed, tokenizer, tmp_path):
    pack(small(), tokenizer, tmp_path)
    stream = batches(small(), tokenizer, tmp_path)
    pickled = pickle.dumps(stream._make)
    (tmp_path / "pretrain/train-00000-of-00008.array_record").unlink()
    _, counts = pickle.loads(pickled)(0)  # as in a worker that starts later
    about = json.loads((tmp_path / "pretrain/manifest.json").read_text())["splits"]["train"]
    assert counts["unreadable"] >= about["counts"]["documents"] // about["rows"]


def test_rows_of_too_many_unreadable_records_are_not_finished(
    packed, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(prepare_rows, "FEWEST", 1)
    out = shutil.copytree(packed, tmp_path / "rows")
    counts = json.loads((out / "pretrain/train-00003-of-00008.json").read_text())
    counts["unreadable"] = counts["documents"] * 8  # about half of all
    (out / "pretrain/train-00003-of-00008.json").write_text(json.dumps(counts))
    plan, shards, missing = begin(small(), tokenizer, out)
    message = r"of \d+ records of train rows could not be read, more than data.max_unreadable=0.1"
    with pytest.raises(SourceError, match=message):
        prepare_rows.finish(plan, shards)
    with pytest.raises(SourceError, match="the preparation is not complete"):
        batches(small(), tokenizer, out)
    plan, shards, missing = begin(small(data__max_unreadable=0.9), tokenizer, out)
    assert not missing
    prepare_rows.finish(plan, shards)
    assert batches(small(), tokenizer, out)


@pytest.mark.parametrize("rows", [2, 6, 100, 200_000])
def test_files_share_all_windows_and_hold_no_more_than_they_may(rows):
    shards = prepare_rows.shards_of("train", rows, 2)
    assert [s.start for s in shards[1:]] == [s.stop for s in shards[:-1]]
    assert (shards[0].start, shards[-1].stop) == (0, rows // 2)
    assert all(0 < s.stop - s.start <= prepare_rows.ROWS // 2 for s in shards)
    assert len(shards) == min(rows // 2, max(16, -(-rows // prepare_rows.ROWS)))
