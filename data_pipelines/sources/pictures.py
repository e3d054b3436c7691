"""Pictures without texts, in a folder and the folders in it, as ImageNet has them."""

from __future__ import annotations

import os
import pathlib
from array import array
from collections.abc import Iterator

import numpy as np

from data_pipelines.decoding import EXTENSIONS, load_image, shown
from data_pipelines.examples import Example
from data_pipelines.faults import SourceError, patiently
from data_pipelines.sources.rows import ReadImage, read_image
from data_pipelines.sources.traits import LACKS
from unicom_jax.core.paths import Path, as_path, is_remote, joined

SUFFIXES = tuple(f".{extension}" for extension in EXTENSIONS)


class PicturesSource:
    """Random access to all pictures below a folder, in the order of their names, for
    `grain.MapDataset.source`.

    Names are kept in memory as one stretch of bytes, so that a million takes some 50 MB; of more
    than a few million pictures make tar files (`WebDatasetSource`).

    Args:
      path: the folder; "~" is the home directory.
      read: path of a picture -> what an `Example` holds of it.

    Raises:
      SourceError: there is no such folder, or no picture in it.
    """

    may_lack = True

    def __init__(self, path: str | os.PathLike, read: ReadImage = load_image) -> None:
        self.path, self._read = as_path(path).expanduser(), read
        if not self.path.is_dir():
            raise SourceError(f"{shown(self.path)}: no such folder: check the path")
        names, stops = bytearray(), array("Q", [0])
        remote = is_remote(self.path)
        for name in _remote_names(self.path) if remote else _names(os.fsencode(self.path)):
            names += name
            stops.append(len(names))
        self._names, self._stops = bytes(names), np.frombuffer(stops, np.uint64)
        if not len(self):
            raise SourceError(
                f"{shown(self.path)}: no picture ({', '.join(SUFFIXES)}) there or in the folders "
                "below it: check the path"
            )

    def __len__(self) -> int:
        return len(self._stops) - 1

    def __getitem__(self, index: int) -> Example:
        where = f"{shown(self.path)} {shown(self.name(index))}"
        path = joined(self.path, self.name(index))
        return Example(where, read_image(path, where, lambda path: self._patiently(path, where)))

    def _patiently(self, path: pathlib.Path, where: str) -> np.ndarray | bytes:
        return patiently(lambda: self._read(path), where)

    def name(self, index: int) -> str:
        """The name of a picture, relative to the folder."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self!r}: index {index} is not in [0, {len(self)})")
        start, stop = self._stops[index : index + 2]
        return os.fsdecode(self._names[int(start) : int(stop)])

    def traits(self) -> np.ndarray:
        """(N,) uint8: none has a caption."""
        return np.broadcast_to(np.uint8(LACKS["captions"]), len(self))

    def __repr__(self) -> str:
        return f"PicturesSource({shown(self.path)})"


def _remote_names(folder: Path) -> list[bytes]:
    """As `_names`, in the same order, from one listing."""

    def place(name: str) -> list[tuple[bool, str]]:
        *folders, last = name.split("/")
        return [*((True, one) for one in folders), (False, last)]

    names = patiently(folder.files, shown(folder))
    shown_ones = (name for name in names if not any(p.startswith(".") for p in name.split("/")))
    pictures = (name for name in shown_ones if name.lower().endswith(SUFFIXES))
    return [os.fsencode(name) for name in sorted(pictures, key=place)]


def _names(folder: bytes, below: bytes = b"", above: tuple = ()) -> Iterator[bytes]:
    """Names of pictures, those of a folder before those of the folders in it. Hidden ones are left
    out, and links back to a folder `above`.
    """
    here = os.path.join(folder, below) if below else folder
    if (real := os.path.realpath(here)) in above:
        return
    with os.scandir(here) as found:
        entries = sorted((e for e in found if not e.name.startswith(b".")), key=lambda e: e.name)
    suffixes = tuple(suffix.encode() for suffix in SUFFIXES)
    for entry in entries:
        if entry.name.lower().endswith(suffixes) and not entry.is_dir():
            yield os.path.join(below, entry.name)
    for entry in entries:
        if entry.is_dir():
            yield from _names(folder, os.path.join(below, entry.name), (*above, real))
