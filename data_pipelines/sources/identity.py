"""The identity of data: cheap to compute, and different if the data differ.

An identity maps the name of each file to a `Mark`. Names are relative, so that data may be moved.
The mark of a file of records covers its size and a few blocks; that of a list of texts covers the
whole list, which is read on opening anyway, and the sizes of a sample of its pictures.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from data_pipelines.decoding import shown
from data_pipelines.sources.folder import FolderSource
from data_pipelines.sources.pictures import PicturesSource
from unicom_jax.core.paths import absolute, as_path, is_remote, joined, open_binary, read_range

BLOCKS, BLOCK = 16, 4096  # blocks read from a file, and bytes per block
PICTURES = 64  # pictures of a folder whose sizes are compared
NAMED = 3  # files that a message names


class Mark(NamedTuple):
    """The identity of one file.

    Attributes:
      size: bytes.
      digest: a digest of the content, or of some blocks of it.
      rows: the number of rows of a list of texts; 0 for other files.
      unordered: for a list of texts, a digest that does not depend on the order of rows.
      pictures: for a list of texts, a digest of the sizes of some of its pictures.
    """

    size: int
    digest: str
    rows: int = 0
    unordered: int = 0
    pictures: str = ""


Identity = Mapping[str, Mark]


class Files(Protocol):
    """A source that is read from files."""

    paths: list[str]


def records_identity(paths: Iterable[str]) -> Identity:
    """The identity of files of records, with names relative to their common folder."""
    paths = [absolute(path) for path in paths]
    base = os.path.commonpath(map(os.path.dirname, paths)) if paths else ""
    return {shown(os.path.relpath(path, base)): _sampled(path) for path in paths}


def identity_of(source: PicturesSource | Files) -> Identity:
    """The identity of a source from its files, or of a folder of pictures from their names and the
    sizes of some of them.
    """
    if not isinstance(source, PicturesSource):
        return records_identity(source.paths)
    digest = hashlib.sha256()
    for index in range(len(source)):
        digest.update(os.fsencode(source.name(index)) + b"\0")
    names = [source.name(i) for i in range(0, len(source), -(-len(source) // PICTURES))]
    sizes = hashlib.sha256(
        " ".join(str(_size(joined(source.path, name))) for name in names).encode()
    )
    return {"pictures": Mark(0, _short(digest), len(source), 0, _short(sizes))}


def folder_identity(source: FolderSource) -> Identity:
    """The identity of pictures in a folder with their list of texts."""
    digest, rows, unordered = hashlib.sha256(), 0, 0
    with open_binary(source.list) as file:
        for line in file:
            digest.update(line)
            if content := line.strip():
                rows, unordered = rows + 1, (unordered + zlib.crc32(content)) % 2**64
        size = file.tell()
    pictures = _pictures(source)
    return {source.list.name: Mark(size, _short(digest), rows, unordered, pictures)}


def fingerprint(identity: Identity) -> str:
    """16 hex digits of an identity."""
    return _short(hashlib.sha256(json.dumps(identity, sort_keys=True).encode()))


def from_json(stored: Mapping[str, list]) -> Identity:
    """An identity that was stored as JSON, where a mark is a list."""
    return {name: Mark(*mark) for name, mark in stored.items()}


def changes(before: Identity, now: Identity, folder: FolderSource | None = None) -> list[str]:
    """The differences in words; empty if there are none.

    Args:
      folder: the source whose identity `now` is, for details about its list.
    """
    found = []
    for what, names in (
        ("missing", before.keys() - now.keys()),
        ("new", now.keys() - before.keys()),
    ):
        if names:
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            found.append(f"{', '.join(sorted(names)[:NAMED])}{more} {_verb(names)} {what}")
    for name in sorted(before.keys() & now.keys()):
        if before[name] != now[name]:
            found.append(f"{name} {_change(before[name], now[name], folder)}")
    if len(found) > NAMED + 2:
        found[NAMED + 1 :] = [f"{len(found) - NAMED - 1} more files changed"]
    return found


Found = Mapping[str, tuple[Identity, FolderSource | None]]  # by the name of a source


def joined_identity(sources: Found) -> Identity:
    """A joint identity of several sources, whose files are named SOURCE/FILE."""
    return {
        f"{source}/{name}" if source else name: mark
        for source, (identity, _) in sources.items()
        for name, mark in identity.items()
    }


def source_differences(before: Identity, sources: Found) -> list[str]:
    """As `changes`, for several sources; each line names the source.

    Args:
      before: their `joined_identity`.
    """
    if "" in sources:
        return changes(before, *sources[""])
    owners: dict[str, dict[str, Mark]] = {}
    for name, mark in before.items():
        source, _, file = name.partition("/")
        owners.setdefault(source, {})[file] = mark
    found = []
    for source in dict.fromkeys((*owners, *sources)):
        identity, folder = sources.get(source, ({}, None))
        lines = changes(owners.get(source, {}), identity, folder)
        found += [f"source {source}: {line}" for line in lines]
    return found


def _verb(names: Iterable[str]) -> str:
    return "is" if len(list(names)) == 1 else "are"


def _change(before: Mark, now: Mark, folder: FolderSource | None) -> str:
    if not before.rows:
        return "was rewritten"
    if before.digest == now.digest:
        return "is the same, but its pictures changed"
    if before.unordered == now.unordered:
        return "has the same rows in another order"
    count = f"({before.rows} rows before, {now.rows} now)"
    if folder is not None and _starts_with(folder.list, before):
        return f"has new rows at its end {count}"
    return f"was rewritten {count}"


def _starts_with(path: pathlib.Path, mark: Mark) -> bool:
    with open_binary(path) as file:
        digest, left = hashlib.sha256(), mark.size
        while left and (block := file.read(min(left, 2**20))):
            digest.update(block)
            left -= len(block)
    return not left and _short(digest) == mark.digest


def _sampled(path: str) -> Mark:
    size, digest = as_path(path).stat().st_size, hashlib.sha256()
    if is_remote(path):
        for index in range(BLOCKS):
            start = max(0, size - BLOCK) * index // (BLOCKS - 1)
            digest.update(read_range(path, start, min(size, start + BLOCK)))
        return Mark(size, _short(digest))
    with open_binary(path) as file:
        for index in range(BLOCKS):
            file.seek(max(0, size - BLOCK) * index // (BLOCKS - 1))
            digest.update(file.read(BLOCK))
    return Mark(size, _short(digest))


def _pictures(source: FolderSource) -> str:
    digest = hashlib.sha256()
    for index in range(0, len(source), -(-len(source) // PICTURES)):
        digest.update(f"{_picture_size(source, index)} ".encode())
    return _short(digest)


def _size(path: pathlib.Path) -> int:
    """Bytes of a file; -1 if it does not exist."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _picture_size(source: FolderSource, index: int) -> int:
    """Bytes of the picture of a row; -1 if the row or the picture is broken."""
    try:
        name = source.first_picture(json.loads(source.line(index)))
        return joined(source.path, name).stat().st_size
    except (OSError, ValueError, TypeError, AttributeError, StopIteration):
        return -1


def _short(digest: hashlib._Hash) -> str:
    return digest.hexdigest()[:16]
