"""Parquet tables: rows in their order, columns by name, broken rows and files."""

from __future__ import annotations

import json
import pickle
import sys

import pyarrow as pa
import pytest

from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sources import open_files, parquet
from data_pipelines.sources.broken import read_or_next
from data_pipelines.sources.parquet import ParquetSource
from tests.data.sources.formats import png, read_all, write_parquet
from tests.data.sources.test_faults import files_left


def table(values, **columns):
    pictures = [{"bytes": png(value), "path": None} for value in values]
    return {"image": pictures, "text": [f"gray {value}" for value in values], **columns}


EXPECTED = [(value, (f"gray {value}",)) for value in range(8)]


@pytest.fixture
def tables(tmp_path):
    write_parquet(tmp_path / "a-0.parquet", table(range(5)))
    write_parquet(tmp_path / "a-1.parquet", table(range(5, 8)))
    return tmp_path


def test_rows_come_in_the_order_of_files_and_row_groups(tables):
    source = pickle.loads(pickle.dumps(ParquetSource(tables)))
    assert read_all(source) == EXPECTED
    assert source.traits().tolist() == [0] * 8
    assert read_all(ParquetSource(tables / "a-{1..0}.parquet")) == [*EXPECTED[5:], *EXPECTED[:5]]
    with pytest.raises(IndexError):
        source[8]


def test_a_row_group_is_read_once_while_it_is_kept_and_only_some_are(tables, monkeypatch):
    source = ParquetSource(tables)
    read_all(source)
    assert len(source._table._groups) == 5
    monkeypatch.setattr(parquet, "CACHE", 0)
    assert read_all(source) == EXPECTED and len(source._table._groups) == 5
    source = ParquetSource(tables)
    assert read_all(source) == EXPECTED and len(source._table._groups) == 1


@pytest.mark.parametrize("kind", ["bytes", "path", "struct with a path"])
def test_pictures_are_bytes_or_paths(tmp_path, kind):
    (tmp_path / "p.png").write_bytes(png(7))
    value = {"bytes": png(7), "path": "p.png"}.get(kind, {"bytes": None, "path": "p.png"})
    path = write_parquet(tmp_path / "a.parquet", {"photo": [value], "alt": [["b", "aa"]]})
    assert read_all(ParquetSource(path, "photo", "alt")) == [(7, ("b", "aa"))]


def test_a_missing_column_is_named_with_those_that_exist(tables):
    for option, name in (("image", "photo"), ("captions", "alt"), ("questions", "qa")):
        with pytest.raises(
            SourceError, match=f"no column '{name}'.*{option} to one of image, text"
        ):
            ParquetSource(tables, **{option: name})
    write_parquet(tables / "b.parquet", {"x": [1], "y": [2]})
    with pytest.raises(SourceError, match="no column 'image' and none with captions.*some of x, y"):
        ParquetSource(tables / "b.parquet")


def test_questions_conversations_edits_and_thoughts_are_columns_too(tmp_path, monkeypatch):
    asked = [[{"question": "what?", "answer": "gray"}], None, []]
    talk = [None, [{"from": "human", "value": "<image>how?"}, {"from": "gpt", "value": "so"}], []]
    edits = [[], None, [{"instruction": "lighter", "target": {"bytes": png(9), "path": None}}]]
    columns = table(range(3), questions=asked, conversations=talk, edits=edits)
    columns |= {"thought": ["", "plan", None]}
    source = ParquetSource(write_parquet(tmp_path / "a.parquet", columns))
    assert [len(source[i].questions) for i in range(3)] == [1, 1, 0]
    assert source[1].questions[0].question == "how?" and source[1].thought == "plan"
    assert int(source[2].edits[0].target[0, 0, 0]) == 9
    assert source.traits().tolist() == [1, 5, 2]
    again = ParquetSource(tmp_path)
    monkeypatch.setattr(parquet, "filled", None)  # they are kept
    assert again.traits().tolist() == [1, 5, 2]


def test_a_column_of_conversations_may_have_any_name(tmp_path):
    talk = [[{"from": "human", "value": "how?"}, {"from": "gpt", "value": "so"}]]
    path = write_parquet(tmp_path / "a.parquet", {"image": [png(1)], "chat": talk})
    source = ParquetSource(path, questions="chat")
    assert source[0].questions[0].answer == "so" and source.traits().tolist() == [17]


# ---- BAGEL's layouts --------------------------------------------------------------------------


def test_captions_may_be_a_json_object_of_texts(tmp_path):
    captions = [json.dumps({"0": "a long one", "1": "short"}), "{braces} in a text", "{}"]
    path = write_parquet(
        tmp_path / "a.parquet", {"image": [png(i) for i in range(3)], "captions": captions}
    )
    found = read_all(ParquetSource(path))
    assert found == [(0, ("short", "a long one")), (1, ("{braces} in a text",)), (2, ())]


def test_a_chain_of_pictures_and_instructions_gives_an_edit_to_each(tmp_path):
    pictures = [[png(1), png(2)], [png(3), png(4), png(5)], [png(6)]]
    instructions = [[["darker", "less light"]], [["one"], ["two"]], []]
    columns = {"image_list": pictures, "instruction_list": instructions}
    source = ParquetSource(write_parquet(tmp_path / "a.parquet", columns))

    def edits(index):
        return [(edit.instruction, int(edit.target[0, 0, 0])) for edit in source[index].edits]

    assert edits(0) == [("darker", 2), ("less light", 2)]
    assert edits(1) == [("one", 4), ("one two", 5)] and int(source[1].image[0, 0, 0]) == 3
    assert source.traits().tolist() == [18, 18, 16]
    with pytest.raises(RecordError, match=r"row 2: 1 pictures and 0 instructions"):
        source[2]


# ---- faults -----------------------------------------------------------------------------------


def test_a_broken_row_is_named_and_another_takes_its_place(tmp_path):
    columns = {"image": [png(0), b"junk", png(2)], "text": ["gray 0", "gray 1", "gray 2"]}
    source = ParquetSource(write_parquet(tmp_path / "a.parquet", columns))
    with pytest.raises(RecordError, match=r"a.parquet row 1: cannot read image <4 bytes>"):
        source[1]
    assert read_or_next(source, 1)[0].captions == ("gray 2",)


def test_a_cut_file_is_refused_and_one_that_vanishes_breaks_its_records_only(tables):
    source = ParquetSource(tables)
    (tables / "a-1.parquet").unlink()
    with pytest.raises(RecordError, match=r"a-1.parquet row 0: unreadable"):
        source[5]
    assert read_or_next(source, 6)[0].captions[0].startswith("gray")
    path = tables / "a-0.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(SourceError, match=r"a-0.parquet: not a whole Parquet file"):
        ParquetSource(tables)


def test_more_files_than_may_be_open_are_all_read(tmp_path, monkeypatch):
    for number in range(30):
        write_parquet(tmp_path / f"{number:02d}.parquet", table([number]))
    monkeypatch.setattr(open_files, "MOST_OPEN", 4)
    with files_left(16):
        found = read_all(ParquetSource(tmp_path))
    assert found == [(number, (f"gray {number}",)) for number in range(30)]


def test_large_row_groups_are_warned_of(tables, monkeypatch, caplog):
    monkeypatch.setattr(parquet, "LARGE", 10)
    ParquetSource(tables)
    assert "row_group_size=100" in caplog.text


# ---- what `datasets` saved --------------------------------------------------------------------


def test_a_saved_folder_is_refused_in_one_line_without_datasets(tmp_path, monkeypatch):
    for name in ("state.json", "dataset_info.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SourceError, match=r"can read it: pip install 'unicom_jax\[datasets\]'"):
        ParquetSource(tmp_path)


def test_a_saved_folder_is_read_through_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset(pa.table(table(range(5))))
    data.save_to_disk(str(tmp_path / "one"))
    source = pickle.loads(pickle.dumps(ParquetSource(tmp_path / "one")))
    assert read_all(source) == EXPECTED[:5] and source.traits().tolist() == [0] * 5
    datasets.DatasetDict({"train": data}).save_to_disk(str(tmp_path / "all"))
    with pytest.raises(
        SourceError, match=r"holds several splits: name one of them, such as .*train"
    ):
        ParquetSource(tmp_path / "all")
