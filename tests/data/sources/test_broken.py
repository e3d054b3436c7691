"""Broken records are skipped, counted and named, and too many of them end the reading."""

from __future__ import annotations

import weakref

import grain
import pytest

from data_pipelines.examples import Example
from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sources import broken
from data_pipelines.sources.broken import SkipBroken, read_or_next
from tests.data.sources.test_sources import picture


class FakeSource:
    """Records named by their index; those in `broken` raise."""

    def __init__(self, broken=(), size=10):
        self.bad, self.size = set(broken), size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        if index in self.bad:
            raise RecordError(f"record {index} is broken")
        return Example(str(index), picture(index % 200), ("a",))


def test_a_broken_record_is_replaced_by_the_next_good_one():
    source = SkipBroken(FakeSource(broken=[3, 4, 9]))
    for _ in range(2):
        keys = [source[i].key for i in range(10)]
        assert keys == ["0", "1", "2", "5", "5", "5", "6", "7", "8", "0"]


@pytest.fixture
def nothing_named(monkeypatch):
    """What other tests named does not count."""
    monkeypatch.setattr(broken, "_named", weakref.WeakKeyDictionary())


def test_a_record_that_several_sources_read_is_named_once(caplog, nothing_named):
    one, other = FakeSource(broken=[1, 2]), FakeSource(broken=[1, 2])
    for source, index in ((one, 1), (other, 1), (other, 2)):
        read_or_next(source, index)
    assert caplog.messages == ["skipped: record 1 is broken", "skipped: record 2 is broken"]


def test_skipped_records_are_counted_and_the_first_are_named(caplog, nothing_named):
    source = FakeSource(broken=[1, 2, 3, 4])
    assert [read_or_next(source, i)[1] for i in (0, 1, 3, 5)] == [0, 4, 2, 0]
    assert [line.split(";")[0] for line in caplog.messages] == [
        f"skipped: record {i} is broken" for i in (1, 2, 3)
    ]
    assert caplog.messages[-1].endswith("further ones are only counted")


def test_a_whole_file_of_unreadable_records_is_skipped():
    source = FakeSource(broken=range(2000, 6000), size=8000)
    for index in (2000, 3333, 5999):
        record, passed = read_or_next(source, index)
        assert not 2000 <= int(record.key) < 6000 and passed < broken.LIMIT


def test_the_replacement_does_not_depend_on_what_was_read_before():
    forward, backward = (SkipBroken(FakeSource(broken=[3, 4, 9])) for _ in range(2))
    ahead = {i: forward[i].key for i in range(10)}
    assert ahead == {i: backward[i].key for i in reversed(range(10))}


def test_too_many_broken_records_in_a_row_stop_with_the_last_reason():
    source = SkipBroken(FakeSource(broken=range(2, 8)), limit=6)
    for _ in range(2):
        with pytest.raises(SourceError, match="6 records in a row.*record 7 is broken"):
            source[2]
    assert source[3].key == "8"


def test_a_source_of_only_broken_records_stops():
    with pytest.raises(SourceError, match="all 10 records of .* are broken, repair"):
        SkipBroken(FakeSource(broken=range(10)))[5]


def test_going_through_a_source_ends():
    assert [example.key for example in SkipBroken(FakeSource(broken=[0, 9]))] == [
        *("1", "1", "2", "3", "4", "5", "6", "7", "8"),
        "1",
    ]
    for outside in (-1, 10):
        with pytest.raises(IndexError):
            SkipBroken(FakeSource())[outside]


def test_skipping_works_inside_grain():
    dataset = grain.MapDataset.source(SkipBroken(FakeSource(broken=[0]))).map(lambda e: e.key)
    assert list(dataset[:3]) == ["1", "1", "2"]
