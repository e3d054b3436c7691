"""The benchmark of the index runs, and its figures belong to what it was asked for."""

from __future__ import annotations

from experiments.benchmarks.index_scale import WITH_EDITS, measure


def test_a_small_index_is_opened_split_and_searched(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = measure(tmp_path / "index", records=20_000, files=4, workers=0)
    assert found["records"] == 20_000
    assert abs(found["with_edits"] / (20_000 * 0.95 * WITH_EDITS) - 1) < 0.2
    assert found["sent_to_each_worker_mb"] < 0.1
