"""Captioned pictures from TensorFlow Datasets, read without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.examples import Example
from data_pipelines.records import RecordError, SourceError, check_captions, one_line

# Where known data sets keep their texts: coco_captions; flickr30k; single captions.
CAPTION_FEATURES = ("captions/text", "captions", "caption", "text")


class TfdsCaptionsSource:
    """Random access to one split of a captions data set, for `grain.MapDataset.source`.

    The data set must have been prepared with file_format="array_record"; nothing is downloaded.

    Args:
      name: a prepared directory (".../coco_captions/2014/1.1.0") or a registered name.
      split: split name, slices included ("train[:90%]").
      data_dir: where prepared data sets lie, for a registered name; None: TFDS's own default.
      image: path of the picture among the features.
      captions: path of the text or texts; None: the first of CAPTION_FEATURES that exists.

    Raises:
      SourceError: no such data set, split or feature, or the files are not ArrayRecord.
    """

    def __init__(
        self,
        name: str | os.PathLike,
        split: str = "train",
        data_dir: str | None = None,
        image: str = "image",
        captions: str | None = None,
    ) -> None:
        self.name, self.split = os.fspath(name), split
        self._data = _open(self.name, split, data_dir)
        features = _paths(self._data.dataset_info.features)
        wanted = CAPTION_FEATURES if captions is None else (captions,)
        self._captions = self._find("captions", wanted, features)
        self._image = self._find("image", (image,), features)

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r}: index {index} is not in [0, {len(self)})")
        where = f"{self.name} {self.split} record {index}"
        try:
            record = self._data[index]
        except Exception as error:  # whatever a feature's decoder or the file reader may raise
            raise RecordError(
                f"{where}: unreadable ({one_line(error)}): prepare the data set again"
            ) from error
        captions = _texts(_at(record, self._captions))
        check_captions(captions, where)
        image = np.asarray(_at(record, self._image))
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise RecordError(
                f"{where}: image is {image.shape} {image.dtype}, not (H, W, 3) uint8: "
                "prepare it with an RGB Image feature"
            )
        return Example(where, image, tuple(sorted(captions, key=len)))

    def _find(self, option: str, wanted: Sequence[str], features: set[str]) -> str:
        for path in wanted:
            if path in features:
                return path
        raise SourceError(
            f"{self.name}: no feature {' or '.join(map(repr, wanted))}: "
            f"set {option!r} to one of {', '.join(sorted(features))}"
        )

    def __repr__(self) -> str:
        return f"TfdsCaptionsSource({self.name} {self.split})"


def _open(name: str, split: str, data_dir: str | None) -> Any:
    import tensorflow_datasets as tfds  # slow to import, and only this source needs it

    try:
        if os.path.isdir(name):
            return tfds.builder_from_directory(name).as_data_source(split)
        return tfds.data_source(name, split=split, data_dir=data_dir, download=False)
    except Exception as error:  # tfds raises a dozen types, and a bare ImportError of TensorFlow
        raise SourceError(
            f"tfds {name!r} {split!r}: cannot be opened ({one_line(error)}): give the directory "
            'of a data set prepared with file_format="array_record" and one of its splits'
        ) from error


def _paths(features: Mapping[str, Any], prefix: str = "") -> set[str]:
    """Slash-separated names of all features, through sequences of dicts too."""
    found = set()
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)
        found.add(prefix + name)
        if hasattr(inner, "items"):
            found |= _paths(inner, f"{prefix}{name}/")
    return found


def _at(record: Any, path: str) -> Any:
    for name in path.split("/"):
        record = record[name]
    return record


def _texts(value: Any) -> list[str]:
    values = [value] if isinstance(value, str | bytes) else list(value)
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]
