"""`unicom data prepare`: data sets as ArrayRecord files on disk."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Callable
from pathlib import Path

from data_pipelines.decoding import load_file, shown
from data_pipelines.faults import RecordError, SourceError
from data_pipelines.preparation.prepare_files import SHARD, Engine, prepare_files
from data_pipelines.scenes.scene import SceneConfig
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.jsonl import JsonlSource
from data_pipelines.sources.openmoji import Settings, prepare_openmoji
from data_pipelines.sources.parquet import ParquetSource
from data_pipelines.sources.records import write_records
from data_pipelines.sources.registry import Source
from data_pipelines.sources.webdataset import WebDatasetSource

SIZE = 64  # of pictures that are drawn here, unless another one is asked for


def prepare(
    dataset: str,
    out: Path,
    package: str | None = None,
    size: int | None = None,
    engine: Engine | None = None,
) -> str:
    """Writes a data set to `out` and says what is there and how to train on it.

    Args:
      dataset: a key of `DATA_SETS`.
      package: openmoji: the npm package as a directory or .tgz; None fetches it. folder: the
        folder, as `FolderSource` reads it. webdataset, parquet, jsonl: the files.
      size: side of the pictures in pixels, `SIZE` when None. Those of files stay as large as they
        are.
      engine: webdataset, parquet, jsonl: where Apache Beam does the work; None: here.

    Raises:
      SourceError: an option that the data set does not have, or what its own preparation raises.
    """
    more = {} if engine is None else {"engine": engine}
    return DATA_SETS[dataset](out, package, size, **more)


def _folder(out: Path, package: str | None, size: int | None) -> str:
    _check_flags("a folder", package, size, "folder? add --package=DIR, with captions.jsonl")
    source = FolderSource(package, load_file)
    shards = -(-len(source) // SHARD)
    try:
        write_records(out / "examples", source, shards)
    except RecordError as error:
        raise SourceError(str(error)) from error  # a line that training would only pass over
    return _written(out, package, len(source), shards)


def _files(
    open_files: Callable[..., Source],
    out: Path,
    package: str | None,
    size: int | None,
    engine: Engine | None = None,
) -> str:
    """Records of tar, Parquet or JSONL files, in their order; broken ones are left out."""
    _check_flags("files", package, size, "files? add --package=PATH, a folder or a pattern")
    found = prepare_files(open_files, package, out, engine)
    line = _written(out, package, found.written, found.files)
    return line + (f"; {found.broken} broken records were left out" if found.broken else "")


def _check_flags(what: str, package: str | None, size: int | None, which: str) -> None:
    if package is None:
        raise SourceError(f"which {which}")
    if size is not None:
        raise SourceError(
            f"--size does nothing for {what}, whose pictures keep their size; leave it out and "
            "set --config.data.image_size in training"
        )


def _written(out: Path, package: str | None, examples: int, shards: int) -> str:
    return (
        f"{shown(out)}: {examples} examples of {shown(package)} in {shards} "
        f"file{'s' * (shards > 1)}; train on them with --config.data.source.kind=array_record "
        f"{_flag('path', out)}"
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

    own = Scenes.builder_configs.get(str(size))  # TFDS takes no other one of the same name
    config = own or ScenesBuilderConfig(name=str(size), scenes=SceneConfig(sizes=((size, size),)))
    out.mkdir(parents=True, exist_ok=True)  # TFDS reports a path that cannot be in many lines
    builder = Scenes(data_dir=str(out), config=config, file_format="array_record")
    builder.download_and_prepare()
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    return (
        f"{shown(builder.data_dir)}: {counts['train']} scenes to train on and {counts['test']} "
        f"held out, {size} x {size} pixels; train on them with --config.data.source.kind=tfds "
        f"{_flag('path', builder.data_dir)} --config.data.source.eval_split=test"
    )


def _flag(key: str, value: str | Path) -> str:
    """An option of the source as a shell takes it, whatever characters the value has."""
    return shlex.quote(f"--config.data.source.{key}={shown(value)}")


DATA_SETS: dict[str, Callable[..., str]] = {
    "folder": _folder,
    "jsonl": functools.partial(_files, JsonlSource),
    "openmoji": _openmoji,
    "parquet": functools.partial(_files, ParquetSource),
    "scenes": _scenes,
    "webdataset": functools.partial(_files, WebDatasetSource),
}
