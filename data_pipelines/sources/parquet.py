"""Tables of pictures and texts: Parquet files, and data that `datasets` saved or can load."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import pathlib
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from data_pipelines.decoding import load_image, shown
from data_pipelines.examples import Example
from data_pipelines.faults import RecordError, SourceError, one_line, patiently
from data_pipelines.sources.columns import (
    Columns,
    choose_columns,
    filled,
    lacking,
    named,
    plain,
    trait_columns,
)
from data_pipelines.sources.copies import local_folder
from data_pipelines.sources.files import Paths, described, find_files, fix_of
from data_pipelines.sources.index import Index, Scan, kept, short_hash
from data_pipelines.sources.open_files import OpenFiles
from data_pipelines.sources.rows import ReadImage, example_of, read_named
from data_pipelines.sources.split import TRAIN
from unicom_jax.core.paths import as_path, is_remote, open_binary

KIND = "parquet-1"  # the version of what `_scan` finds
CACHE = 256 * 2**20  # bytes of row groups that a process keeps
LOG = logging.getLogger(__name__)
LARGE = 64 * 2**20  # bytes of a row group above which random access is slow


class Table(Protocol):
    """Rows of named values by index, with their traits."""

    paths: list[str]

    def __len__(self) -> int: ...

    def row(self, index: int) -> tuple[Mapping[str, Any], str, pathlib.Path]:
        """(row, its name for messages, the folder that its paths are relative to)."""

    def traits(self) -> np.ndarray: ...


class ParquetSource:
    """Random access to the rows of tables, for `grain.MapDataset.source`.

    Parquet is read by row groups, of which the latest are cached: reading one picture costs as much
    as its whole row group. Groups of a few MB are fast (Hugging Face writes 100 rows per group).

    Args:
      paths: a file, a folder (all its *.parquet, or one of `datasets.save_to_disk`), a glob or a
        brace pattern, or a list of these.
      image: the column with pictures.
      captions: the column with texts; "": the first of captions, caption and text that exists.
      questions: the column with questions or conversations; "": that of this name, if it exists.
      read: path or bytes of a picture -> what an `Example` holds for it.

    Raises:
      SourceError: there are no files, or a column is missing; the message names those that exist.
    """

    may_lack = True

    def __init__(
        self,
        paths: Paths,
        image: str = "image",
        captions: str = "",
        questions: str = "",
        read: ReadImage = load_image,
    ) -> None:
        choose = functools.partial(
            choose_columns, image=image, captions=captions, questions=questions
        )
        saved = saved_folder(paths)
        self._open(_saved_table(saved, choose) if saved else ParquetTable(paths, choose), read)

    def _open(self, table: Table, read: ReadImage) -> None:
        self._table, self._read = table, read
        self.paths = table.paths

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r}: index {index} is not in [0, {len(self)})")
        row, where, folder = self._table.row(index)
        read = functools.partial(picture_of, folder, self._read)
        return example_of(plain(row, where), where, read)

    def traits(self) -> np.ndarray:
        """(N,) uint8 traits; columns of pictures and captions count as filled."""
        return self._table.traits()

    def __repr__(self) -> str:
        return described("ParquetSource", self.paths)


def picture_of(folder: pathlib.Path, read: ReadImage, value: Any) -> Any:
    """What `read` makes of a picture in a table: bytes, {"bytes", "path"}, or a name in a folder.

    Raises:
      ValueError: as `ReadImage`.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    return read(value) if isinstance(value, bytes) else read_named(folder, read, value)


class ParquetTable:
    """Parquet files through pyarrow. Can be pickled; threads may share it."""

    def __init__(self, paths: Paths, choose: Callable[[Sequence[str], str], Columns]) -> None:
        self.paths = find_files(paths, (".parquet",), "check the path")
        self._index = Index(self.paths, KIND, scan_parquet)
        rows = [
            np.diff(self._index.places(file).astype(np.int64)) for file in range(len(self.paths))
        ]
        self._stops = np.cumsum(np.concatenate(rows))  # rows up to the end of each row group
        if not len(self):
            raise SourceError(f"{shown(self.paths[0])}: no rows: check the path")
        self._files = OpenFiles(functools.partial(_open_parquet, self.paths))
        self._columns = choose(self._files[0].schema_arrow.names, shown(self.paths[0]))
        self._begin()

    def _begin(self) -> None:
        self._groups: OrderedDict[int, Any] = OrderedDict()  # the least recently used first
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._stops[-1])

    def row(self, index: int) -> tuple[Mapping[str, Any], str, pathlib.Path]:
        group = int(np.searchsorted(self._stops, index, side="right"))
        local = index - (int(self._stops[group - 1]) if group else 0)
        place = self._index[group]
        path = self.paths[place.file]
        where = f"{shown(path)} row {place.start + local}"
        try:
            table = patiently(lambda: self._group(group, place.file, place.local), where)
        except SourceError:
            raise
        except Exception as error:  # pyarrow's own errors, OSError among them
            self._files.forget(place.file)
            raise RecordError(
                f"{where}: unreadable ({one_line(error)}): copy or write the file again"
            ) from error
        return named(table, local, self._columns, where), where, as_path(path).parent

    def _group(self, group: int, file: int, local: int) -> Any:
        with self._lock:
            if group not in self._groups:
                names = self._columns.names()
                self._groups[group] = self._files[file].read_row_group(local, names)
                while len(self._groups) > 1 and self._bytes() > CACHE:
                    self._groups.popitem(last=False)
            self._groups.move_to_end(group)
            return self._groups[group]

    def _bytes(self) -> int:
        return sum(table.nbytes for table in self._groups.values())

    def traits(self) -> np.ndarray:
        """Traits from the columns that exist; rows of nested columns are read once per file."""
        names = trait_columns(self._columns)
        bare = lacking(self._columns)
        if not names:
            return np.broadcast_to(np.uint8(bare), len(self))
        kind = f"{KIND}-traits-{short_hash(*names)}"
        every = [
            kept(path, kind, self._rows(number), functools.partial(self._scan_traits, number))
            for number, path in enumerate(self.paths)
        ]
        return np.concatenate(every) | np.uint8(bare)

    def _rows(self, file: int) -> int:
        return int(self._index.places(file)[-1])

    def _scan_traits(self, file: int) -> np.ndarray:
        names = trait_columns(self._columns)
        there = self._files[file].schema_arrow.names
        table = self._files[file].read([name for name in names if name in there])
        return filled(table, names)

    def __getstate__(self) -> dict:
        state = dict(self.__dict__)
        del state["_groups"], state["_lock"]
        return state

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._begin()


class DatasetsSource(ParquetSource):
    """Random access to a split of a data set that `datasets.load_dataset` finds: on the Hugging
    Face Hub, from where it is downloaded once into the cache of `datasets`, or in a folder.

    Args:
      path: "org/name" or a folder.
      part: the split, such as "train", or a part of it, such as "train[:10%]".
      subset: the configuration of a data set that has several; "": the default one.
      revision: a branch, tag or commit of the data set; "": the newest.
      image, captions, questions, read: as for `ParquetSource`.

    Raises:
      SourceError: `datasets` is not installed or cannot load the split, or a column is missing.
    """

    def __init__(
        self,
        path: str,
        part: str = TRAIN,
        subset: str = "",
        revision: str = "",
        image: str = "image",
        captions: str = "",
        questions: str = "",
        read: ReadImage = load_image,
    ) -> None:
        name, path = shown(os.path.expanduser(path)), _hub_name(path) or local_folder(path)
        data = _by_datasets(
            f"{name}, split {part!r}",
            "check data.source.path, subset, split and revision, and the connection to the Hub",
            lambda datasets: datasets.load_dataset(
                os.path.expanduser(path),
                subset or None,
                split=part,
                revision=revision or None,
            ),
        )
        files = sorted(file["filename"] for file in data.cache_files)
        choose = functools.partial(
            choose_columns, image=image, captions=captions, questions=questions
        )
        self.name = f"{name} ({part})"
        self._open(ArrowTable(data, self.name, files, choose), read)

    def __repr__(self) -> str:
        return f"DatasetsSource({self.name})"


class ArrowTable:
    """A data set of `datasets`, which maps its Arrow files into memory.

    Args:
      data: a `datasets.Dataset`.
      name: its name in messages.
      paths: its files.
    """

    def __init__(
        self,
        data: Any,
        name: str,
        paths: Sequence[str],
        choose: Callable[[Sequence[str], str], Columns],
        folder: str = "",
    ) -> None:
        self.name, self.paths, self.folder = name, list(paths), folder
        self._data = data.with_format("arrow")
        self._columns = choose(self._data.column_names, name)

    def __len__(self) -> int:
        return len(self._data)

    def row(self, index: int) -> tuple[Mapping[str, Any], str, pathlib.Path]:
        where = f"{self.name} row {index}"
        try:
            table = patiently(lambda: self._data[index : index + 1], where)
        except SourceError:
            raise
        except Exception as error:  # those of pyarrow and of `datasets`
            raise RecordError(f"{where}: unreadable ({one_line(error)}): write it again") from error
        return named(table, 0, self._columns, where), where, pathlib.Path(self.folder)

    def traits(self) -> np.ndarray:
        names = trait_columns(self._columns)
        bare = np.uint8(lacking(self._columns))
        if not names:
            return np.broadcast_to(bare, len(self))
        return filled(self._data.select_columns(list(names))[:], names) | bare


def saved_folder(paths: Paths) -> str:
    """The folder that `datasets.save_to_disk` wrote, or ""."""
    if not isinstance(paths, str | os.PathLike):
        return ""
    folder = as_path(paths).expanduser()
    if (folder / "dataset_dict.json").is_file():
        inside = sorted(path.name for path in folder.iterdir() if (path / "state.json").is_file())
        raise SourceError(
            f"{shown(folder)}: holds several splits: name one of them, such as "
            f"{shown(folder / (inside or ['train'])[0])}"
        )
    whole = (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()
    return local_folder(folder) if whole else ""


def _hub_name(path: str) -> str:
    """OWNER/NAME of hf://datasets/OWNER/NAME, else ""."""
    found = re.fullmatch(r"hf://datasets/([^/@]+/[^/@]+)/?", path)
    return found[1] if found else ""


def scan_parquet(path: str) -> Scan:
    """The first row of each row group, and the end. Each record of the index is a row group."""
    try:
        metadata = patiently(lambda: _open_parquet([path], 0), shown(path)).metadata
    except SourceError:
        raise
    except Exception as error:  # pyarrow's own errors, OSError among them
        raise SourceError(
            f"{shown(path)}: not a whole Parquet file ({one_line(error)}): "
            + fix_of(path, "copy or write it again")
        ) from error
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size for group in groups), default=0)
    if largest > LARGE:
        LOG.warning(
            "%s: row groups of up to %d MB are read whole for each picture; write it with smaller "
            "ones (row_group_size=100), or run `unicom data prepare parquet`",
            shown(path),
            largest // 2**20,
        )
    if not metadata.num_rows:
        groups = []
    rows = itertools.accumulate((group.num_rows for group in groups), initial=0)
    return Scan(np.array(list(rows), np.uint64), np.zeros(len(groups), np.uint8))


def _open_parquet(paths: Sequence[str], number: int) -> Any:
    import pyarrow.parquet as pq  # takes a while, and only this source needs it

    path = paths[number]
    return pq.ParquetFile(open_binary(path) if is_remote(path) else path)


def _saved_table(folder: str, choose: Callable[[Sequence[str], str], Columns]) -> ArrowTable:
    data = _by_datasets(
        shown(folder), "save it again", lambda datasets: datasets.load_from_disk(folder)
    )
    paths = sorted(str(path) for path in pathlib.Path(folder).glob("*.arrow"))
    return ArrowTable(data, shown(folder), paths, choose, folder)


def _by_datasets(name: str, cure: str, load: Callable[[Any], Any]) -> Any:
    """What `load` makes with the package `datasets`; `name` and `cure` are for messages."""
    try:
        import datasets
    except ImportError:
        raise SourceError(
            f"{name}: only the package `datasets` can read it: pip install "
            "'unicom_jax[datasets]', or save the data as Parquet files"
        ) from None
    try:
        return load(datasets)
    except Exception as error:  # it raises many types for damaged data, names and connections
        raise SourceError(f"{name}: cannot be opened ({one_line(error)}): {cure}") from error
