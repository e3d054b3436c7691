"""Pictures with texts as `tf.train.Example` records in ArrayRecord files, read without TensorFlow.

Each is a map from names of features to lists of bytes. One feature holds the file of a picture
(JPEG, PNG, ...), another one or several texts in UTF-8.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.decoding import load_image, shown
from data_pipelines.examples import Example
from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sources.checks import check_texts
from data_pipelines.sources.files import Paths
from data_pipelines.sources.records import ArrayRecordSource
from data_pipelines.sources.rows import ReadImage, read_image

# Where other programs put them; those of the second line are from TensorFlow's own examples.
IMAGES = ("image", "jpg", "jpeg", "png", "image/encoded")
CAPTIONS = ("captions", "caption", "text", "txt", "image/caption", "image/class/text")


class TfExampleSource(ArrayRecordSource[Example]):
    """Random access to the records, for `grain.MapDataset.source`. Captions come the shortest
    first.

    Args:
      paths: as for `ArrayRecordSource`.
      image: the feature with the picture; "": the first of IMAGES that the first record has.
      captions: the feature with the text or texts; "": the first of CAPTIONS.
      read: bytes of a picture file -> what an `Example` holds of it.

    Raises:
      SourceError: as `ArrayRecordSource`; the first record is no Example, or lacks a feature.
    """

    may_lack = False

    def __init__(
        self, paths: Paths, image: str = "", captions: str = "", read: ReadImage = load_image
    ) -> None:
        super().__init__(paths, _features)
        where = shown(self.paths[0])
        if not len(self):
            raise SourceError(f"{where}: no records: check the path")
        try:
            first = super().__getitem__(0)
        except RecordError as error:
            raise SourceError(str(error)) from error
        self._image = _choose("image", image, IMAGES, first, where)
        self._captions = _choose("captions", captions, CAPTIONS, first, where)
        self._decode = functools.partial(_decode, self._image, self._captions, read)

    def traits(self) -> np.ndarray:
        """(N,) uint8: pictures with captions, and nothing else."""
        return np.zeros(len(self), np.uint8)

    def __repr__(self) -> str:
        return f"TfExampleSource({shown(self.paths[0])} and {len(self.paths) - 1} more)"


def _choose(
    option: str, asked: str, usual: Sequence[str], features: Mapping[str, list], where: str
) -> str:
    for name in (asked,) if asked else usual:
        if name in features:
            return name
    lacking = repr(asked) if asked else " or ".join(map(repr, usual))
    there = ", ".join(sorted(features)) or "(it has none)"
    raise SourceError(f"{where}: no feature {lacking}: set data.source.{option} to one of {there}")


def _features(data: bytes, where: str) -> dict[str, list[bytes]]:
    """The features of a record that hold bytes."""
    from tensorflow_datasets.proto import tf_example_pb2  # slow to import, and only needed here

    try:
        found = tf_example_pb2.Example.FromString(data).features.feature
    except Exception as error:  # protobuf's, which differs between its implementations
        raise RecordError(f"{where}: not a tf.train.Example: check data.source.kind") from error
    return {name: list(feature.bytes_list.value) for name, feature in found.items()}


def _decode(image: str, captions: str, read: ReadImage, data: bytes, where: str) -> Example:
    features = _features(data, where)
    files = features.get(image, [])
    if len(files) != 1:
        raise RecordError(f"{where}: {len(files)} values in {image!r}: give the bytes of a picture")
    try:
        texts = [text.decode() for text in features.get(captions, [])]
    except UnicodeDecodeError as error:
        raise RecordError(f"{where}: {captions!r} is not UTF-8 ({error.reason})") from None
    example = Example(where, read_image(files[0], where, read), tuple(sorted(texts, key=len)))
    check_texts(example, where, captioned=True)
    return example
