"""Pictures and texts in tar files in WebDataset's layout, with random access.

Consecutive files of a shard whose names agree up to the first dot are one sample:

    000012.jpg  000012.txt  000012.json     picture (see `EXTENSIONS`), caption, further texts

The JSON has the layout of `sources.rows` without the picture's name; other keys are ignored. Its
captions come before that of the txt file. The target of an edit is the rest of a file's name:
{"edits": [{"instruction": "remove the hat", "target": "bald.jpg"}]} is 000012.bald.jpg.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np

from data_pipelines.decoding import EXTENSIONS, load_image, shown
from data_pipelines.examples import Example
from data_pipelines.faults import RecordError, SourceError, one_line, patiently, reason_of
from data_pipelines.sources.files import Paths, described, find_files, fix_of
from data_pipelines.sources.index import Index, Scan
from data_pipelines.sources.open_files import ByteFiles
from data_pipelines.sources.rows import (
    CAPTION_KEYS,
    IMAGE_KEYS,
    ReadImage,
    example_of,
    parse_row,
    traits_of_row,
)
from data_pipelines.sources.traits import LACKS
from unicom_jax.core.paths import open_binary

LOG = logging.getLogger(__name__)
KIND = "tar-2"  # the version of what `scan_tar` finds
BLOCK = 512  # bytes; the size of a tar file is a multiple
_SIZE, _CHECK, _FOLDER = slice(124, 136), slice(148, 156), slice(345, 500)  # of a tar header
CHUNK = 2**20  # bytes read at once after the end mark, which some 10,000 zeros follow
Members = dict[str, bytes]  # what follows the key in a file's name -> its content


class WebDatasetSource:
    """Random access to the samples of tar files, for `grain.MapDataset.source`.

    A sample is read with one access. The start of each sample is found when a shard is first
    opened, and stored (`sources.index`).

    Args:
      paths: a file, a folder (all its *.tar), a glob or a brace pattern, or a list of these.
      read: bytes of a picture file -> what an `Example` holds for it.

    Raises:
      SourceError: there is no shard, or one is truncated, compressed or not ordered by sample.
    """

    may_lack = True

    def __init__(self, paths: Paths, read: ReadImage = load_image) -> None:
        self.paths = find_files(paths, (".tar",), "check the path")
        self._index = Index(self.paths, KIND, scan_tar)
        self._files, self._read = ByteFiles(self.paths), read
        with contextlib.suppress(RecordError):  # reported when it is read
            self._warn_of_several(self._members(0)[2])

    def _warn_of_several(self, members: Members) -> None:
        """Says which picture is used where the first sample has several, such as a depth map."""
        found = [extension for extension in EXTENSIONS if extension in members]
        if len(found) > 1:
            LOG.warning(
                "%s: its first sample has several pictures (.%s): .%s is used, as in all others",
                *(shown(self.paths[0]), ", .".join(found), found[0]),
            )

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Example:
        file, key, members = self._members(index)
        where = f"{shown(self.paths[file])} {key}"

        def read(name: Any) -> np.ndarray | bytes:
            if not isinstance(name, str) or name not in members:
                raise ValueError(f"no file {name!r} in its sample, which has {', '.join(members)}")
            return self._read(members[name])

        row = _row(members, where)
        has = any(row.get(name) for name in (*IMAGE_KEYS, *CAPTION_KEYS))
        if not has and any("." in rest for rest in members):
            raise RecordError(
                f"{where}: neither a picture nor a caption among its files, "
                f".{', .'.join(members)}: the name of a sample ends at its first dot"
            )
        return example_of(row, where, read)

    def _members(self, index: int) -> tuple[int, str, Members]:
        """(number of the shard, key, files) of a sample."""
        file, local, start, stop = self._index[index]
        where = f"{shown(self.paths[file])} sample {local}"
        return file, *_sample(self._files.read(file, start, stop, where), where)

    def traits(self) -> np.ndarray:
        """(N,) uint8 traits, as they were when the shards were scanned."""
        return self._index.traits()

    def __repr__(self) -> str:
        return described("WebDatasetSource", self.paths)


def scan_tar(path: str) -> Scan:
    """One pass over the headers of a shard, and over its JSON files.

    Raises:
      SourceError: the tar file is incomplete, or the files of a sample are not next to each other.
    """
    try:
        return patiently(lambda: _scan(path), shown(path))
    except (tarfile.TarError, EOFError) as error:
        cure = "gunzip it" if _compressed(path) else fix_of(path, "copy or write it again")
        raise SourceError(
            f"{shown(path)}: not a whole tar file ({one_line(error)}): {cure}"
        ) from error
    except OSError as error:
        raise SourceError(
            f"{shown(path)}: cannot be read ({reason_of(error)}): copy it again"
        ) from error


def _scan(path: str) -> Scan:
    starts, traits, keys = [], [], set()
    with (
        open_binary(path) as file,
        tarfile.open(fileobj=file, mode="r:", errorlevel=1) as tar,
    ):
        extensions: Members = {}
        current = None
        for member in _members(tar):
            if not member.isfile():
                raise SourceError(
                    f"{shown(path)}: {shown(member.name)} is a link, which has no content of its "
                    "own: write the shard again with tar --dereference --hard-dereference"
                )
            key, extension = split_name(member.name)
            if key != current:
                if current is not None:
                    traits.append(_traits(extensions))
                if key in keys:
                    raise SourceError(
                        f"{shown(path)}: the files of {shown(key)} are not next to each other: "
                        "write it again in the order of their names (tar --sort=name)"
                    )
                keys.add(key)
                starts.append(member.offset)
                current, extensions = key, {}
            small = extension == "json" or (extension == "txt" and member.size < BLOCK)
            extensions[extension] = tar.extractfile(member).read() if small else b"unread"
        if current is not None:
            traits.append(_traits(extensions))
        _check_end(tar, path)
        return Scan(np.array([*starts, tar.offset], np.uint64), np.array(traits, np.uint8))


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """A shard's files and links in order, without hidden ones such as those that macOS adds."""
    while (member := tar.next()) is not None:
        tar.members = []  # else it keeps all members in memory
        whole = member.isfile() or member.issym() or member.islnk()
        if whole and not os.path.basename(member.name).startswith("."):
            yield member


def _check_end(tar: tarfile.TarFile, path: str) -> None:
    """Checks that a tar file ends with blocks of zeros; tarfile accepts any other end, too."""
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(BLOCK)
    if end == bytes(BLOCK):
        while rest := tar.fileobj.read(CHUNK):
            if rest.strip(b"\0"):
                raise SourceError(
                    f"{shown(path)}: more follows its end mark at byte {tar.offset}, which no "
                    "reader would see: join shards with tar --concatenate, not with cat"
                )
        return
    what = "is damaged" if len(end) == BLOCK else "ends without its end mark: it was cut short"
    raise SourceError(f"{shown(path)}: {what} at byte {tar.offset}: copy or write it again")


def _compressed(path: str) -> bool:
    with open_binary(path) as file:
        return file.read(2) == b"\x1f\x8b"


def split_name(name: str) -> tuple[str, str]:
    """(key, rest) of a file's name: all up to the first dot after the last slash, and the rest in
    lower case.
    """
    folder, _, file = name.rpartition("/")
    stem, _, rest = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, rest.lower()


def _traits(members: Members) -> int:
    found = 0
    try:
        found = traits_of_row(_row(members, ""))
    except RecordError:  # the reason is reported when the record is read
        found = LACKS["captions"] + LACKS["image"] * (not any(e in members for e in EXTENSIONS))
    return found


def _sample(data: bytes, where: str) -> tuple[str, Members]:
    """(key, files) of the part of a tar file that holds one sample."""
    if (plain := _plain_files(data)) is not None:
        names = [name for name, _ in plain]
        key = split_name(names[-1])[0] if names else ""
        return shown(key), {split_name(name)[1]: content for name, content in plain}
    members: Members = {}
    key = ""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in _members(tar):
                key, extension = split_name(member.name)
                members[extension] = tar.extractfile(member).read()
    except tarfile.TarError as error:
        raise RecordError(
            f"{where}: damaged ({one_line(error)}); if the shard was rewritten since it was "
            "opened, start again; otherwise copy it again"
        ) from error
    return shown(key), members


def _plain_files(data: bytes) -> list[tuple[str, bytes]] | None:
    """(name, content) of the files in a part of a tar file, without hidden ones. None: it has more
    than headers of plain files, such as long names, or is damaged; `tarfile`, which takes ten times
    as long, then reads it.
    """
    found, at = [], 0
    while at < len(data):
        header = data[at : at + BLOCK]
        at += BLOCK
        try:
            check, size = (int(header[part].strip(b" \0"), 8) for part in (_CHECK, _SIZE))
        except ValueError:
            return None
        stop = at + size
        whole = sum(header) - sum(header[_CHECK]) + 8 * ord(" ") == check
        if not whole or header[156:157] not in (b"0", b"\0") or stop > len(data):
            return None
        name, folder = (header[part].partition(b"\0")[0] for part in (slice(100), _FOLDER))
        if name.endswith(b"/"):  # a folder
            return None
        path = os.fsdecode(folder + b"/" + name if folder else name)
        if not os.path.basename(path).startswith("."):
            found.append((path, data[at:stop]))
        at = stop + -size % BLOCK
    return found if at == len(data) else None


def _row(members: Members, where: str) -> dict[str, Any]:
    """The row of a sample in the layout of `sources.rows`."""
    row = parse_row(members["json"], where) if "json" in members else {}
    picture = next((name for name in EXTENSIONS if name in members), None)
    row = {key: value for key, value in row.items() if key not in IMAGE_KEYS}
    if not any(row.get(key) for key in CAPTION_KEYS):
        row = {key: value for key, value in row.items() if key not in CAPTION_KEYS}
        try:
            text = members.get("txt", b"").decode("utf-8-sig").strip()
        except UnicodeDecodeError as error:
            raise RecordError(
                f"{where}: its txt file is not UTF-8 ({error.reason}): convert it"
            ) from None
        row |= {"text": text} if text else {}
    return row if picture is None else {**row, "image": picture}
