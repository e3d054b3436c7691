"""Pictures with texts from TensorFlow Datasets, read without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image as PilImage

from data_pipelines.decoding import load_image, shown, to_srgb
from data_pipelines.examples import Edit, Example, Question
from data_pipelines.faults import RecordError, SourceError, one_line, patiently
from data_pipelines.sources.checks import check_texts
from data_pipelines.sources.copies import local_folder
from data_pipelines.sources.rows import ReadImage, read_image

INFO = "dataset_info.json"  # in the directory of a prepared data set
# Where known data sets keep their texts: coco_captions; flickr30k; single captions.
CAPTION_FEATURES = ("captions/text", "captions", "caption", "text")
# A data set with all of these holds complete examples, like that of `scenes/tfds_builder.py`.
WHOLE = {"key", "image", "captions", "thought"}
WHOLE |= {f"questions/{name}" for name in ("question", "answer", "kind")}
WHOLE |= {f"edits/{name}" for name in ("instruction", "target", "kind", "caption")}


class TfdsSource:
    """Random access to one split of a data set, for `grain.MapDataset.source`.

    Captions are sorted, the shortest first. A data set with the features of an `Example` (`WHOLE`)
    also gives its questions, edits and plans, and everything in its original order.

    The data set must have been prepared with file_format="array_record"; nothing is downloaded.
    Pictures are decoded as those of other sources, not by TFDS, which ignores EXIF orientations,
    colour profiles and missing rows.

    Args:
      name: a prepared directory (".../coco_captions/2014/1.1.0") or a registered name.
      split: split name, slices included ("train[:90%]").
      data_dir: where prepared data sets are, for a registered name; None: TFDS's own default.
      image: path of the picture among the features.
      captions: path of the text or texts, or of a class label, whose names then are the captions;
        None: the first of CAPTION_FEATURES that exists.
      read: bytes of a picture file -> what an `Example` holds for it.

    Raises:
      SourceError: there is no such data set, split or feature, or the files are not ArrayRecord.
    """

    def __init__(
        self,
        name: str | os.PathLike,
        split: str = "train",
        data_dir: str | None = None,
        image: str = "image",
        captions: str | None = None,
        read: ReadImage = load_image,
    ) -> None:
        name = local_folder(name, needs=INFO)
        self.name, self.split = os.path.expanduser(os.fspath(name)), split
        self._read = read
        self._data = _open(self.name, split, data_dir)
        features = _leaves(self._data.dataset_info.features)
        self._whole = captions is None and image == "image" and features.keys() >= WHOLE
        wanted = CAPTION_FEATURES if captions is None else (captions,)
        texts = [name for name, feature in features.items() if _is_text(feature)]
        self._captions = self._find("captions", wanted, texts)
        self._classes = getattr(features[self._captions], "names", None)
        self._image = self._find("image", (image,), list(features))
        self._data.decoders = _nested(
            {name: _Kept() for name in features if _is_file(features[name])}
        )

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r}: index {index} is not in [0, {len(self)})")
        where = f"{shown(self.name)} {self.split} record {index}"
        try:
            record = patiently(lambda: self._data[index], where)
        except SourceError:
            raise
        except Exception as error:  # whatever a feature's decoder or the file reader may raise
            raise RecordError(
                f"{where}: unreadable ({one_line(error)}): prepare the data set again"
            ) from error
        example = self._example(record, where)
        check_texts(example, where, captioned=True)
        return example

    def _example(self, record: Mapping[str, Any], where: str) -> Example:
        captions = _texts(_at(record, self._captions), self._classes)
        image = _picture(_at(record, self._image), where, self._read)
        if not self._whole:
            return Example(where, image, tuple(sorted(captions, key=len)))
        return Example(
            key=_text(record["key"]),
            image=image,
            captions=captions,
            questions=_questions(record["questions"]),
            edits=_edits(record["edits"], where, self._read),
            thought=_text(record["thought"]),
        )

    def traits(self) -> np.ndarray | None:
        """Zeros for a data set with captions only; None, unknown, for others."""
        return None if self._whole else np.zeros(len(self), np.uint8)

    def _find(self, option: str, wanted: Sequence[str], features: Sequence[str]) -> str:
        for path in wanted:
            if path in features:
                return path
        raise SourceError(
            f"{shown(self.name)}: no feature {' or '.join(map(repr, wanted))}: "
            f"set data.source.{option} to one of {', '.join(sorted(features)) or '(none fits)'}"
        )

    def __repr__(self) -> str:
        return f"TfdsSource({self.name} {self.split})"


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


def record_files(name: str | os.PathLike) -> list[str]:
    """The ArrayRecord files of all splits of a prepared directory or of a registered data set.

    Raises:
      SourceError: there are none.
    """
    folder = os.path.expanduser(local_folder(name, needs=INFO))
    if not os.path.isdir(folder):
        folder = str(_builder(folder).data_path)
    found = [os.path.join(folder, file) for file in os.listdir(folder) if ".array_record" in file]
    if not found:
        raise SourceError(f"{shown(folder)}: holds no ArrayRecord file of a data set: prepare it")
    return sorted(found)


def _builder(name: str) -> Any:
    import tensorflow_datasets as tfds  # slow to import, and only this source needs it

    try:
        return tfds.builder(name)
    except Exception as error:  # tfds raises a dozen types
        raise SourceError(
            f"tfds {name!r}: no such data set ({one_line(error)}): give its directory"
        ) from error


def _leaves(features: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """All features by slash-separated names, including those within sequences of dicts; for a
    sequence, the feature of its elements.
    """
    found = {}
    for name, feature in features.items():
        inner = getattr(feature, "feature", feature)
        found[prefix + name] = inner
        if hasattr(inner, "items"):
            found |= _leaves(inner, f"{prefix}{name}/")
    return found


def _is_text(feature: Any) -> bool:
    """Whether its values can be captions: texts, or classes, which have names."""
    dtype = getattr(feature, "np_dtype", None)
    texts = isinstance(dtype, type | np.dtype) and np.dtype(dtype).kind in "OSU"
    return texts or getattr(feature, "names", None) is not None


def _at(record: Any, path: str) -> Any:
    for name in path.split("/"):
        record = record[name]
    return record


def _text(value: bytes | str) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _texts(value: Any, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """The texts of one value or several. `classes` are the names of values that are labels."""
    if classes is not None:
        return tuple(classes[label] for label in np.atleast_1d(value))
    values = [value] if isinstance(value, str | bytes) else value
    return tuple(map(_text, values))


class _Kept:
    """In place of TFDS's decoder of a feature: the picture file as it was stored."""

    def setup(self, *, feature: Any) -> None:
        """Called by TFDS."""

    def decode_example_np(self, stored: Any) -> Any:
        return stored

    decode_batch_example_np = decode_ragged_example_np = decode_example_np


def _is_file(feature: Any) -> bool:
    """Whether a feature holds picture files of integer levels; floats are stored in a form of
    TFDS's own."""
    import tensorflow_datasets as tfds  # as in `_open`

    return isinstance(feature, tfds.features.Image) and feature.np_dtype in (np.uint8, np.uint16)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{"a/b": x} -> {"a": {"b": x}}."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[name] = value
    return tree


def _picture(value: Any, where: str, read: ReadImage) -> Any:
    """What `read` makes of a picture file, or the (H, W, 3) uint8 array of another feature with
    one, three or four channels, on white where transparent."""
    if isinstance(value, bytes):
        return read_image(value, where, read)
    image = np.asarray(value)
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.dtype != np.uint8:
        raise RecordError(
            f"{where}: image is {image.shape} {image.dtype}, not (H, W, 3) uint8: "
            "prepare it with an RGB Image feature"
        )
    if image.shape[2] == 3:
        return image
    return np.asarray(to_srgb(PilImage.fromarray(image[..., 0] if image.shape[2] == 1 else image)))


def _questions(rows: Mapping[str, Any]) -> tuple[Question, ...]:
    """Questions from TFDS, which gives a dictionary of sequences for a sequence of dictionaries."""
    return tuple(map(Question, *(_texts(rows[name]) for name in ("question", "answer", "kind"))))


def _edits(rows: Mapping[str, Any], where: str, read: ReadImage) -> tuple[Edit, ...]:
    targets = [_picture(target, f"{where} edit target", read) for target in rows["target"]]
    words = (_texts(rows[name]) for name in ("instruction", "kind", "caption"))
    return tuple(Edit(i, t, k, c) for t, i, k, c in zip(targets, *words, strict=True))
