"""`unicom data bench`: what is measured is the stage's own work, and what is missing is named."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image as PilImage

from data_pipelines.batches import document_stream
from data_pipelines.bench import peers
from data_pipelines.bench.stages import (
    STAGES,
    Measured,
    Work,
    rates,
    raw_documents,
    raw_stream,
    time_window,
)
from data_pipelines.build import picture_reader
from data_pipelines.segments import Image
from tests.data.mixed import entries, mixed_config, write_sources
from tests.data.samples import tokenizer
from unicom_jax.cli import main
from unicom_jax.runs.data_bench import Rate, _in_turn, _ratio


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    config = mixed_config(entries(write_sources(tmp_path_factory.mktemp("sources"))))
    return Work(config.to_dict(), "pretrain", tokenizer().to_json(), 12)


def peer(slots=40):
    from data_pipelines.images import ImagePolicy

    policy = ImagePolicy("fixed", size=32)
    return peers.Peer(tokenizer().to_json(), policy, 16, 1, slots, pictures=4, patches=4)


def test_a_window_goes_through_all_stages_with_the_documents_of_training(work):
    stream = raw_stream(work)
    measured = time_window(stream, 1, 12, picture_reader(work.config))
    assert measured.seconds.keys() == set(STAGES) and min(measured.seconds.values()) > 0
    trained = document_stream(work.config, "pretrain", tokenizer())
    made = [trained.document(index)[0] for index in range(12, 24)]
    raw = list(raw_documents(stream, range(12, 24)))
    assert [one.key for one in raw] == [document.key for document in made]
    assert measured.counts["documents"] == 12
    assert measured.counts["tokens"] == sum(map(len, made))
    assert measured.counts["bytes"] == sum(one.size for one in raw) > 0


def test_pictures_are_read_as_the_bytes_of_their_files(work):
    raw = raw_documents(raw_stream(work), range(20))
    pictures = [s.pixels for one in raw for s in one.segments if isinstance(s, Image)]
    assert pictures and all(PilImage.open(io.BytesIO(data)).size for data in pictures)


def test_rates_of_processes_at_once_add_up():
    both = Measured(Counter(read=2.0, pack=6.0), Counter(documents=8, tokens=800, bytes=4_000_000))
    found = rates(both, workers=2)
    assert found["read"] == pytest.approx({"documents": 8.0, "tokens": 800.0, "bytes": 4.0})
    assert found["all"]["documents"] == pytest.approx(2.0)


def test_the_ratio_is_to_the_faster_of_the_others():
    found = {("unicom_jax", 2): Rate((30.0, 33.0, 36.0)), ("datasets", 2): Rate((10.0, 10.0, 11.0))}
    found["webdataset", 2] = Rate((20.0, 22.0, 20.0))
    assert _ratio(found, 2) == "workers=2: 1.65 times webdataset (1.50-1.80 over 3 rounds)"
    assert "no other loader" in _ratio({("unicom_jax", 1): Rate((1.0,))}, 1)


def test_loaders_in_one_process_make_a_batch_each_in_turn(monkeypatch):
    now, made = [0.0], []
    monkeypatch.setattr("time.process_time", lambda: now[0])

    def batches(name, seconds, documents):
        try:
            while True:
                made.append(name)
                now[0] += seconds
                yield documents
        finally:
            made.append(f"{name} is closed")

    found = _in_turn({"a": batches("a", 0.5, 4), "b": batches("b", 1.0, 4)}, 1.0)
    assert found == {"a": 8.0, "b": 4.0}
    assert made == ["a", "b"] * 3 + ["b is closed", "a is closed"]  # the first are not counted


def test_others_cut_resize_tokenise_and_pack_the_same_pictures_and_words():
    ids, (cut,) = peer()(["a red dot"], [PilImage.new("RGB", (50, 40), (7, 8, 9))])
    assert ids == list(tokenizer().encode("a red dot")) and cut.shape == (4, 768)
    assert (cut.reshape(-1, 3) == (7, 8, 9)).all()
    rows = peer().pack([(ids, [cut])] * 5)
    assert rows.documents == 5 and rows.tokens.shape[1] == 40
    size = len(ids) + 4
    assert len(rows.tokens) == -(-5 // min(40 // size, 4))
    np.testing.assert_array_equal(rows.tokens[0, : len(ids)], ids)
    np.testing.assert_array_equal(rows.tokens[0, size : size + len(ids)], ids)
    np.testing.assert_array_equal(rows.patches[0, 1], cut)


@pytest.mark.parametrize("name", peers.PEERS)
def test_another_loader_reads_all_documents(work, tmp_path, name):
    pytest.importorskip(name)
    pytest.importorskip("torch")
    documents = list(raw_documents(raw_stream(work), range(8)))
    if name == "webdataset":
        stream = peers.webdataset_batches(peers.write_shards(documents, tmp_path, 2), peer(), 8, 0)
    else:
        stream = peers.datasets_batches(peers.write_dataset(documents, tmp_path), peer(), 8, 0)
    batch = next(stream)
    assert batch.documents == 8 and batch.tokens.any() and batch.patches.any()


def test_the_command_prints_rates_and_names_loaders_that_are_absent(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(peers, "missing", lambda name: [name])
    path = tmp_path / "tiny.py"
    path.write_text("from tests.tiny import tiny_config as get_config\n")
    flags = ["--workers=1", "--rounds=1", "--seconds=0.1", "--documents=8"]
    assert main(["data", "bench", f"--config={path}", *flags]) == 0
    out = capfd.readouterr().out
    for name in peers.PEERS:
        assert f"! {name} is left out: {name} is not installed (pip install 'unicom_jax[ben" in out
    assert all(stage in out for stage in STAGES) and "% full" in out and "load average" in out
    assert "workers=0: in one process, per second of its processor time" in out
    for workers in (0, 1):
        assert f"workers={workers}: no other loader to compare with" in out
