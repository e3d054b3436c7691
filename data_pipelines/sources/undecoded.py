"""Pictures that are decoded where somebody looks at them, and not before."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from data_pipelines.decoding import read_file, shown
from data_pipelines.examples import Example
from data_pipelines.faults import RecordError, SourceError, patiently
from data_pipelines.segments import FinishedDocument, Text

# What of a record somebody looks at.
TEXTS_ALONE, ONE_PICTURE, EVERY_PICTURE = "texts alone", "one picture", "every picture"

Content = TypeVar("Content", Example, FinishedDocument)


@dataclasses.dataclass
class PictureFile:
    """A picture as its file, in place of its pixels in a record.

    Attributes:
      source: the path of the file, and its bytes once they were read.
      decode: bytes -> (H, W, 3) uint8; takes a `name` for messages (`decoding.load_image`).
      where: the record, at the beginning of messages.
      name: the file, in messages; "": its size.
    """

    source: str | os.PathLike | bytes
    decode: Callable[..., np.ndarray]
    where: str = ""
    name: str = ""

    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8, decoded anew at each call.

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


def decoded(content: Content, look: str) -> Content:
    """A record with the pixels of those of its pictures that are looked at.

    Args:
      look: TEXTS_ALONE; ONE_PICTURE: that of an example, and all of a document; EVERY_PICTURE: the
        targets of edits, too.

    Raises:
      RecordError, SourceError: as `PictureFile.pixels`.
    """
    if look == TEXTS_ALONE:
        return content
    if isinstance(content, FinishedDocument):
        parts = [
            segment
            if isinstance(segment, Text)
            else dataclasses.replace(segment, pixels=_pixels(segment.pixels))
            for segment in content.segments
        ]
        return dataclasses.replace(content, segments=tuple(parts))
    found = {}
    if isinstance(content.image, PictureFile):
        found["image"] = content.image.pixels()
    if look == EVERY_PICTURE and any(
        isinstance(edit.target, PictureFile) for edit in content.edits
    ):
        found["edits"] = tuple(
            dataclasses.replace(edit, target=_pixels(edit.target)) for edit in content.edits
        )
    return dataclasses.replace(content, **found) if found else content


def _pixels(picture: np.ndarray | bytes | PictureFile) -> np.ndarray | bytes:
    return picture.pixels() if isinstance(picture, PictureFile) else picture
