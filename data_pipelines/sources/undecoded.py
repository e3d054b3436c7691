"""Pictures that are decoded only when they are used."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from PIL import Image as PilImage

from data_pipelines.decoding import read_file, shown
from data_pipelines.examples import Example
from data_pipelines.faults import RecordError, SourceError, patiently
from data_pipelines.segments import FinishedDocument, Text

# Which pictures of a record are used.
TEXTS_ALONE, ONE_PICTURE, EVERY_PICTURE = "texts alone", "one picture", "every picture"

Content = TypeVar("Content", Example, FinishedDocument)
Stored = "np.ndarray | bytes | PictureFile | PilImage.Image"  # what a record holds for a picture


@dataclasses.dataclass
class PictureFile:
    """A picture file, which replaces the pixels in a record.

    Attributes:
      source: the path of the file, replaced by its bytes once they have been read.
      decode: bytes -> the picture; takes a `name` for messages (`decoding.load_picture`).
      where: the record, at the beginning of messages.
      name: the file, in messages; "": its size.
    """

    source: str | os.PathLike | bytes
    decode: Callable[..., PilImage.Image]
    where: str = ""
    name: str = ""

    def picture(self) -> PilImage.Image:
        """The decoded picture in mode RGB; every call decodes it again.

        Raises:
          RecordError: the file is missing, or cannot be decoded.
          SourceError: the machine cannot read it.
        """
        try:
            return self.decode(self._read(), name=self.name)
        except SourceError:
            raise
        except ValueError as error:
            raise RecordError(f"{self.where}: {error}") from error

    def _read(self) -> bytes:
        if not isinstance(self.source, bytes):
            path, self.name = self.source, shown(self.source)
            self.source = patiently(lambda: read_file(path), self.name)
        return self.source

    def __len__(self) -> int:
        """Bytes in memory."""
        return len(self.source) if isinstance(self.source, bytes) else 0


def decoded(content: Content, look: str, arrays: bool = True) -> Content:
    """A record in which the pictures that are used are decoded.

    Args:
      look: TEXTS_ALONE: none; ONE_PICTURE: that of an example, and all of a document;
        EVERY_PICTURE: also the targets of edits.
      arrays: decode to arrays; otherwise to Pillow images, which can be resized directly.

    Raises:
      RecordError, SourceError: as `PictureFile.picture`.
    """
    if look == TEXTS_ALONE:
        return content
    if isinstance(content, FinishedDocument):
        parts = [
            segment
            if isinstance(segment, Text)
            else dataclasses.replace(segment, pixels=_decoded(segment.pixels, arrays))
            for segment in content.segments
        ]
        return dataclasses.replace(content, segments=tuple(parts))
    found = {}
    if isinstance(content.image, PictureFile):
        found["image"] = _decoded(content.image, arrays)
    if look == EVERY_PICTURE and any(
        isinstance(edit.target, PictureFile) for edit in content.edits
    ):
        found["edits"] = tuple(
            dataclasses.replace(edit, target=_decoded(edit.target, arrays))
            for edit in content.edits
        )
    return dataclasses.replace(content, **found) if found else content


def _decoded(picture: Stored, arrays: bool) -> Stored:
    if not isinstance(picture, PictureFile):
        return picture
    return np.asarray(picture.picture()) if arrays else picture.picture()
