"""Pictures with texts as `tf.train.Example` records in ArrayRecord files, read without TensorFlow.

Each maps names of features to lists of bytes. One feature holds a picture file (JPEG, PNG, ...),
another holds one or several texts in UTF-8. The records of a source may be without one of the two.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.decoding import load_image, shown
from data_pipelines.examples import Example
from data_pipelines.faults import RecordError, SourceError
from data_pipelines.sources.checks import check_texts
from data_pipelines.sources.files import Paths, described
from data_pipelines.sources.records import ArrayRecordSource
from data_pipelines.sources.rows import ReadImage, read_image
from data_pipelines.sources.traits import LACKS

LOG = logging.getLogger(__name__)
# Names used by other programs; those of the second line are from TensorFlow's own examples.
IMAGES = ("image", "jpg", "jpeg", "png", "image/encoded")
CAPTIONS = ("captions", "caption", "text", "txt", "image/caption", "image/class/text")


class TfExampleSource(ArrayRecordSource[Example]):
    """Random access to the records, for `grain.MapDataset.source`. Captions are sorted, the
    shortest first.

    Args:
      paths: as for `ArrayRecordSource`.
      image: the feature with the picture; "": the first of IMAGES in the first record, if any.
      captions: the feature with the text or texts; "": the first of CAPTIONS, if any.
      read: bytes of a picture file -> what an `Example` holds for it.

    Raises:
      SourceError: as `ArrayRecordSource`, or the first record is no Example or lacks a feature.
    """

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
        if not self._image and not self._captions:
            raise SourceError(
                f"{where}: no feature {' or '.join(map(repr, (*IMAGES, *CAPTIONS)))}: set "
                f"data.source.image and data.source.captions to some of {_listed(first)}"
            )
        self._decode = functools.partial(_decode, self._image, self._captions, read)

    @property
    def may_lack(self) -> bool:
        return not self._image or not self._captions

    def traits(self) -> np.ndarray:
        """(N,) uint8: pictures, captions, or both, and nothing else."""
        lacking = {"image": not self._image, "captions": not self._captions}
        found = sum(LACKS[name] for name, lacks in lacking.items() if lacks)
        return np.broadcast_to(np.uint8(found), len(self))

    def __repr__(self) -> str:
        return described("TfExampleSource", self.paths)


def _choose(
    option: str, asked: str, usual: Sequence[str], features: Mapping[str, list], where: str
) -> str:
    if asked and asked not in features:
        raise SourceError(
            f"{where}: no feature {asked!r}: set data.source.{option} to one of {_listed(features)}"
        )
    found = asked or next((name for name in usual if name in features), "")
    if not found:
        LOG.warning(
            "%s: no feature %s: its records are read without; data.source.%s names another of %s",
            *(where, " or ".join(map(repr, usual)), option, _listed(features)),
        )
    return found


def _listed(features: Mapping[str, list]) -> str:
    return ", ".join(sorted(features)) or "(it has none)"


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
    files = features.get(image, []) if image else [None]
    if len(files) != 1:
        raise RecordError(f"{where}: {len(files)} values in {image!r}: give the bytes of a picture")
    try:
        texts = [text.decode() for text in features.get(captions, [])]
    except UnicodeDecodeError as error:
        raise RecordError(f"{where}: {captions!r} is not UTF-8 ({error.reason})") from None
    picture = read_image(files[0], where, read) if image else None
    example = Example(where, picture, tuple(sorted(texts, key=len)))
    check_texts(example, where, captioned=bool(captions))
    return example
