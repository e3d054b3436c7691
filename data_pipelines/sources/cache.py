"""An in-memory cache in front of a source whose records are expensive to make or to read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as PilImage

from data_pipelines.examples import Example
from data_pipelines.segments import FinishedDocument, Text
from data_pipelines.sources.traits import traits_of_source
from data_pipelines.sources.undecoded import EVERY_PICTURE, TEXTS_ALONE, PictureFile, decoded

Content = Example | FinishedDocument


class CachedSource:
    """Decodes the pictures of a source's records and keeps the first records that fit into
    `max_bytes`; nothing is ever evicted.

    Epochs are shuffled, so every record is equally far from its next use: keeping the first ones
    hits as often as the bound allows, while evicting the oldest would never hit on a source larger
    than the cache. Pixels are kept where those of the whole source fit, as far as the records so
    far can say; of a larger source the files are, of which ten times as many fit, and each is
    decoded when it is used. Safe to share between threads; each worker process fills its own.
    """

    def __init__(self, source: Sequence[Content], max_bytes: int) -> None:
        self.source, self.max_bytes = source, max_bytes
        self.bytes = 0
        self._kept: dict[int, tuple[Content, int]] = {}
        self._looks = self._pixels = 0  # how many records were decoded, and their bytes
        self._views: dict[str, Looking] = {}

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Content:
        return self.read(index, EVERY_PICTURE, arrays=True)

    def read(self, index: int, look: str, *, arrays: bool) -> Content:
        """A record, with what is looked at decoded (`undecoded.decoded`); what is kept decoded are
        arrays, which take less memory than Pillow's pictures."""
        kept, _ = self._kept.get(index, (None, 0))
        content = self.source[index] if kept is None else kept
        arrays = arrays or self._fits()
        found = decoded(content, look, arrays)
        if self.max_bytes and found is not kept:
            if look != TEXTS_ALONE:
                self._looks += 1
                self._pixels += _size(found)
            self._keep(index, (found, content) if arrays and self._fits() else (content,))
        return found

    def _fits(self) -> bool:
        """Whether the whole source would fit decoded, if all records were as those so far."""
        expected = self._pixels / max(self._looks, 1) * len(self.source)
        return self.max_bytes > 0 and expected <= self.max_bytes

    def _keep(self, index: int, forms: Sequence[Content]) -> None:
        """Keeps the first form of a record for which there is memory."""
        _, before = self._kept.get(index, (None, 0))
        for one in forms:
            if self.bytes - before + (size := _size(one)) <= self.max_bytes:
                self._kept[index] = one, size
                self.bytes += size - before
                return
        if self._kept.pop(index, None):  # it grew: the files that its paths name were read
            self.bytes -= before

    def looking(self, look: str) -> Looking:
        """The records for somebody who looks at a part of each; they share this cache."""
        return self._views.setdefault(look, Looking(self, look))

    def __repr__(self) -> str:
        return repr(self.source)

    def traits(self) -> np.ndarray | None:
        return traits_of_source(self.source)


class Looking:
    """The records of a cached source, of which only what is looked at is decoded: as arrays, or as
    Pillow's pictures on their way to a size of their own (`images.prepare`)."""

    def __init__(self, source: CachedSource, look: str) -> None:
        self.source, self.look = source, look

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Content:
        return self.source.read(index, self.look, arrays=False)

    def __repr__(self) -> str:
        return repr(self.source)

    def traits(self) -> np.ndarray | None:
        return self.source.traits()


def _size(content: Content) -> int:
    """Bytes of the pictures and, roughly, of the words."""
    if isinstance(content, FinishedDocument):
        words = [segment.text for segment in content.segments if isinstance(segment, Text)]
        pictures = [s.pixels for s in content.segments if not isinstance(s, Text)]
    else:
        questions = (q.question + q.answer for q in content.questions)
        words = [*content.captions, *questions, content.thought]
        pictures = [content.image, *(edit.target for edit in content.edits)]
    return sum(map(_picture_size, pictures)) + sum(map(len, words)) + 1000


def _picture_size(picture: np.ndarray | bytes | PictureFile | PilImage.Image | None) -> int:
    match picture:
        case None:
            return 0
        case PictureFile():
            return len(picture)
        case PilImage.Image():
            return 3 * picture.width * picture.height
    return memoryview(picture).nbytes
