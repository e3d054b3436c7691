"""Sources by name.

A source has `__len__` and `__getitem__(index)`, so `grain.MapDataset.source` accepts it. Its
records are Examples or, for DOCUMENT_KINDS, FinishedDocuments. It raises RecordError for a record
that cannot be used.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from data_pipelines.decoding import load_image, shown
from data_pipelines.examples import Example
from data_pipelines.faults import SourceError, reason_of, unreadable
from data_pipelines.scenes.scene import SceneConfig
from data_pipelines.scenes.source import ScenesSource
from data_pipelines.segments import FinishedDocument
from data_pipelines.sources.broken import SkipBroken
from data_pipelines.sources.conversations import ConversationsSource
from data_pipelines.sources.copies import local_folder
from data_pipelines.sources.documents import DocumentsSource
from data_pipelines.sources.files import Paths
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.interleaved import InterleavedSource
from data_pipelines.sources.jsonl import JsonlSource
from data_pipelines.sources.parquet import DatasetsSource, ParquetSource
from data_pipelines.sources.pictures import PicturesSource
from data_pipelines.sources.records import (
    SUFFIX,
    ArrayRecordSource,
    check_complete,
    decode_example,
)
from data_pipelines.sources.rows import ReadImage
from data_pipelines.sources.split import TRAIN, split_source
from data_pipelines.sources.text import TextSource
from data_pipelines.sources.tf_example import TfExampleSource
from data_pipelines.sources.tfds import TfdsSource
from data_pipelines.sources.webdataset import WebDatasetSource


class Source(Protocol):
    """Random access to records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example | FinishedDocument: ...


def open_source(config: Mapping[str, Any]) -> Source:
    """Open the source that a config describes.

    Args:
      config: "kind" (a key of KINDS), the arguments of that kind, and optionally "skip_broken"
        (default True: wrap in SkipBroken; False: the first broken record raises) and "read", which
        replaces `load_image` as the reader of picture files for the kinds that have any.

    Raises:
      SourceError: an unknown kind or argument, a missing argument, or nothing to open.
    """
    options = dict(config)
    kind = options.pop("kind", None)
    if kind not in KINDS:
        raise SourceError(f"data source kind {kind!r} is unknown: {_nearest(kind, KINDS)}")
    skip = options.pop("skip_broken", True)
    how = {}
    if kind in UNSPLIT:
        how = {"split": options.pop("split", TRAIN), "share": options.pop("held_out", 0.0)}
    arguments = inspect.signature(KINDS[kind]).parameters
    if "read" not in arguments:  # the kind draws its pictures
        options.pop("read", None)
    _check_keys(options, arguments, f"data source {kind!r}")
    for name, argument in arguments.items():
        if argument.default is argument.empty and name not in options:
            raise SourceError(f"data source {kind!r} lacks {name!r}: give it in the config")
    try:
        source = KINDS[kind](**options)
    except OSError as error:  # of a step of opening that is not retried
        given = next((options[name] for name in ("path", "paths", "name") if name in options), kind)
        raise unreadable(_shown(given), reason_of(error), error.errno) from error
    source = split_source(source, **how) if how else source
    return SkipBroken(source) if skip else source


def _open_scenes(
    seed: int = 0,
    size: int = 100_000,
    with_edits: bool = False,
    scene: Mapping[str, Any] | None = None,
) -> ScenesSource:
    """`scene` holds fields of SceneConfig; lists become tuples."""
    fields = dict(scene or {})
    _check_keys(fields, [f.name for f in dataclasses.fields(SceneConfig)], "data source 'scenes'")
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
    return ScenesSource(SceneConfig(**fields), seed, size, with_edits)


def _open_openmoji(
    path: str | os.PathLike, split: str = TRAIN, read: ReadImage = load_image
) -> ArrayRecordSource:
    path = local_folder(path, needs=f"{split}-*{SUFFIX}")
    files = sorted(pathlib.Path(path).expanduser().glob(f"{split}-*{SUFFIX}"))
    if not files:
        raise SourceError(
            f"{shown(path)}: no OpenMoji split {split!r} there: run `unicom data prepare openmoji`"
        )
    check_complete(map(str, files))
    return _open_array_record(files, read)


def _open_array_record(paths: Paths, read: ReadImage = load_image) -> ArrayRecordSource:
    return ArrayRecordSource(paths, functools.partial(decode_example, read=read))


KINDS: dict[str, Callable[..., Source]] = {
    "scenes": _open_scenes,
    "array_record": _open_array_record,
    "folder": FolderSource,
    "jsonl": JsonlSource,
    "parquet": ParquetSource,
    "pictures": PicturesSource,
    "text": TextSource,
    "tfds": TfdsSource,
    "tf_example": TfExampleSource,
    "webdataset": WebDatasetSource,
    "openmoji": _open_openmoji,
    "documents": DocumentsSource,
    "conversations": ConversationsSource,
    "interleaved": InterleavedSource,
    "datasets": DatasetsSource,
}
# Their records are finished documents.
DOCUMENT_KINDS = ("conversations", "documents", "interleaved")
WITHOUT_PICTURES = (*DOCUMENT_KINDS, "text")
WITHOUT_CAPTIONS = (*WITHOUT_PICTURES, "pictures")
# Kinds without their own splits, which also accept "split" and "held_out" (`split_source`).
UNSPLIT = (
    *("array_record", "conversations", "datasets", "documents", "folder", "interleaved", "jsonl"),
    *("parquet", "pictures", "text", "tf_example", "webdataset"),
)


def _shown(paths: Paths) -> str:
    return ", ".join(map(shown, [paths] if isinstance(paths, str | os.PathLike) else paths))


def _check_keys(given: Mapping[str, Any], known: Any, owner: str) -> None:
    for key in given:
        if key not in known:
            raise SourceError(f"{owner} has no option {key!r}: {_nearest(key, known)}")


def _nearest(name: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}"
