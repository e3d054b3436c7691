"""`unicom data prepare`: data sets as ArrayRecord files on disk."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from pathlib import Path

from data_pipelines.decoding import shown
from data_pipelines.faults import SourceError
from data_pipelines.preparation.prepare_files import LIST, MOST_BROKEN, Engine, prepare_files
from data_pipelines.scenes.scene import SceneConfig
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.jsonl import JsonlSource
from data_pipelines.sources.openmoji import Settings, prepare_openmoji
from data_pipelines.sources.parquet import ParquetSource
from data_pipelines.sources.registry import Source
from data_pipelines.sources.webdataset import WebDatasetSource

SIZE = 64  # default size of pictures that are drawn here


def prepare(
    dataset: str,
    out: Path,
    package: str | None = None,
    size: int | None = None,
    engine: Engine | None = None,
    most_broken: float | None = None,
) -> str:
    """Writes a data set to `out` and prints what it holds and how to train on it.

    Args:
      dataset: a key of `DATA_SETS`.
      package: openmoji: the npm package as a directory or .tgz; None fetches it. folder: the
        folder, as `FolderSource` reads it. webdataset, parquet, jsonl: the files.
      size: side of drawn pictures in pixels; None: `SIZE`. Pictures from files keep their size.
      engine: of folder, webdataset, parquet and jsonl: where Apache Beam does the work; None: in
        this process.
      most_broken: of the same: the share of the records that may be left out; None: the default.

    Raises:
      SourceError: the data set does not take one of the options, or its preparation fails.
    """
    more = {"engine": engine, "most_broken": most_broken}
    more = {name: value for name, value in more.items() if value is not None}
    return DATA_SETS[dataset](out, package, size, **more)


def _files(
    open_files: Callable[..., Source],
    out: Path,
    package: str | None,
    size: int | None,
    engine: Engine | None = None,
    most_broken: float = MOST_BROKEN,
) -> str:
    """Writes the records of a folder or of files in order, without the broken ones."""
    if package is None:
        raise SourceError("which files? add --package=PATH, a folder or a pattern of files")
    if size is not None:
        raise SourceError(
            "--size does nothing for files, whose pictures keep their size; leave it out and "
            "set --config.data.image_size in training"
        )
    found = prepare_files(open_files, package, out, engine, most_broken)
    left_out = ""
    if found.broken:
        were = "record was" if found.broken == 1 else "records were"
        left_out = f"; {found.broken} broken {were} left out, listed in {shown(out / LIST)}"
    return (
        f"{shown(out)}: {found.written} examples of {shown(package)} in {found.files} "
        f"file{'s' * (found.files > 1)}{left_out}; train on them with "
        f"--config.data.source.kind=array_record {_flag('path', out)}"
    )


def _openmoji(out: Path, package: str | None, size: int | None) -> str:
    size = size or SIZE
    prepared = prepare_openmoji(out, package, Settings(size=size))
    return (
        f"{shown(out)}: OpenMoji {prepared.version}, {prepared.train} drawings to train on and "
        f"{prepared.eval} held out, {size} x {size} pixels; train on them with "
        f"--config.data.source.kind=openmoji {_flag('path', out)}"
    )


def _scenes(out: Path, package: str | None, size: int | None) -> str:
    size = size or SIZE
    if package is not None:
        raise SourceError("--package does nothing for scenes, which are drawn here; leave it out")
    # TFDS takes seconds to import, and only this needs it.
    from data_pipelines.scenes.tfds_builder import Scenes, ScenesBuilderConfig

    own = Scenes.builder_configs.get(str(size))  # TFDS rejects a second one of the same name
    config = own or ScenesBuilderConfig(name=str(size), scenes=SceneConfig(sizes=((size, size),)))
    out.mkdir(parents=True, exist_ok=True)  # TFDS reports an impossible path in many lines
    builder = Scenes(data_dir=str(out), config=config, file_format="array_record")
    builder.download_and_prepare()
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    return (
        f"{shown(builder.data_dir)}: {counts['train']} scenes to train on and {counts['test']} "
        f"held out, {size} x {size} pixels; train on them with --config.data.source.kind=tfds "
        f"{_flag('path', builder.data_dir)} --config.data.source.eval_split=test"
    )


def _flag(key: str, value: str | Path) -> str:
    """A source option quoted for a shell, whatever characters its value has."""
    return shlex.quote(f"--config.data.source.{key}={shown(value)}")


DATA_SETS: dict[str, Callable[..., str]] = {
    "folder": functools.partial(_files, FolderSource),
    "jsonl": functools.partial(_files, JsonlSource),
    "openmoji": _openmoji,
    "parquet": functools.partial(_files, ParquetSource),
    "scenes": _scenes,
    "webdataset": functools.partial(_files, WebDatasetSource),
}
