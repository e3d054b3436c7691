"""Paths on file systems and in object stores: `gs://BUCKET/...`, `s3://BUCKET/...` and, for
reading, `hf://datasets/OWNER/NAME/...` (Hugging Face).

A local path is a plain `pathlib.Path`. An address is a `StorePath`, with the same methods: etils'
`epath` over fsspec's file systems (gcsfs, s3fs, huggingface_hub). A folder of a store exists while
it contains something, a file exists once its upload is complete, and nothing can be appended to,
renamed or locked.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from etils import epath
from etils.epath import backend, gpath

ADDRESS = re.compile(r"(gs|s3|hf)://")
READ_ONLY = "hf"
PACKAGES = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3"), "hf": ("huggingface_hub", "")}
# By itself s3fs gives up after some 4 seconds, and a store may be out of reach for longer. With 8
# attempts it waits for half a minute to a minute, as gcsfs does by itself.
RETRIES = {"mode": "standard", "total_max_attempts": 8}
LFS = "version https://git-lfs"  # the first words of a file that Git LFS has not fetched
COPIED_AT_ONCE = 8 * 2**20  # bytes
COPIES_AT_ONCE = 8  # files
NUMBERS = {
    FileNotFoundError: errno.ENOENT,
    FileExistsError: errno.EEXIST,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
}
Function = TypeVar("Function", bound=Callable[..., Any])
Path = pathlib.Path | epath.Path
PathLike = str | os.PathLike


def is_remote(path: PathLike) -> bool:
    """Whether a path is an address in an object store."""
    return bool(ADDRESS.match(os.fspath(path)))


def as_path(path: PathLike) -> Path:
    """A `pathlib.Path`, or a `StorePath`, which has the same methods, for an address."""
    if isinstance(path, StorePath):
        return path
    return StorePath(path) if is_remote(path) else pathlib.Path(path)


def is_pointer(path: PathLike) -> bool:
    """Whether a file is only a Git LFS pointer, because its content was not fetched."""
    with open_binary(path) as file:
        return file.read(len(LFS)) == LFS.encode()


@functools.cache
def _filesystem(scheme: str, process: int) -> Any:
    import fsspec

    package, extra = PACKAGES[scheme]
    options = {}
    if scheme == "s3" and not {"AWS_MAX_ATTEMPTS", "AWS_RETRY_MODE"} & os.environ.keys():
        users = fsspec.config.conf.get(scheme, {}).get("config_kwargs", {})
        options["config_kwargs"] = {"retries": RETRIES, **users}  # fsspec would drop the user's
    try:
        # Others write there too, even TensorStore in this process, so listings are not cached.
        return fsspec.filesystem(
            scheme, use_listings_cache=False, skip_instance_cache=True, **options
        )
    except ImportError as error:
        which = f"'unicom_jax[{extra}]'" if extra else package
        raise OSError(
            errno.ENOPKG, f"{scheme}:// needs {package} ({error}): pip install {which}"
        ) from None


def filesystem(address: PathLike) -> Any:
    """fsspec's file system of an address.

    Raises:
      OSError: the package for it is not installed.
    """
    return _filesystem(os.fspath(address).split("://", 1)[0], os.getpid())


@contextlib.contextmanager
def asking(address: PathLike) -> Iterator[None]:
    """Turns other errors of the stores' clients (a refused or broken connection, missing
    credentials) into an OSError, and adds to those that are OSErrors what they lack: a number, a
    reason in words, the address."""
    try:
        yield
    except (ValueError, NotImplementedError):
        raise
    except Exception as error:  # botocore's, aiohttp's, google's, huggingface_hub's
        # Those of huggingface_hub are OSErrors too, but without a number and of several lines.
        if isinstance(error, OSError) and (error.errno or type(error).__module__ == "builtins"):
            if error.errno is None and (number := NUMBERS.get(type(error))):  # it has only a path
                error.errno, error.strerror = number, os.strerror(number)
            if error.errno is not None and error.filename is None:
                error.filename = os.fspath(address)
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OSError(errno.EREMOTEIO, reason, os.fspath(address)) from error


def _asking(method: Function) -> Function:
    @functools.wraps(method)
    def asked(self: Any, path: PathLike, *args: Any, **kwargs: Any) -> Any:
        with asking(path):
            return method(self, path, *args, **kwargs)

    return asked


class _Backend(backend._FileSystemSpecBackend):
    """epath's fsspec backend, with the file systems of `filesystem`."""

    def fs(self, path: PathLike) -> Any:
        return filesystem(path)

    for _name in ("open", "exists", "isdir", "listdir", "glob", "rmtree", "remove", "copy"):
        locals()[_name] = _asking(getattr(backend._FileSystemSpecBackend, _name))
    del _name


@dataclasses.dataclass(frozen=True)
class Stat:
    """Size in bytes and time of the last change in seconds, as in `os.stat_result` and epath's."""

    st_size: int
    st_mtime: float
    is_directory: bool

    @property
    def length(self) -> int:
        return self.st_size

    @property
    def st_mtime_ns(self) -> int:
        return int(self.st_mtime * 1e9)

    @property
    def mtime(self) -> int:
        return int(self.st_mtime)


class StorePath(gpath.PosixGPath):
    """An address in an object store, with the methods of `pathlib.Path`."""

    _backend = _Backend()

    def is_file(self) -> bool:
        with asking(self):
            return filesystem(self).isfile(str(self))

    def iterdir(self) -> Iterator[StorePath]:
        with contextlib.suppress(FileNotFoundError):  # an empty folder
            for name in self._backend.listdir(str(self)):
                if name:  # empty for the folder itself, for which some tools create a file
                    yield self / name

    def is_symlink(self) -> bool:
        return False

    def absolute(self) -> StorePath:
        return self

    def resolve(self, strict: bool = False) -> StorePath:
        return self

    def expanduser(self) -> StorePath:
        return self

    def mkdir(self, mode: int | None = None, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a folder exists while something is in it."""

    def read_text(self, encoding: str | None = None, errors: str = "strict") -> str:
        return self.read_bytes().decode(encoding or "utf-8", errors)

    def write_text(
        self, data: str, encoding: str | None = None, errors: str = "strict", newline: Any = None
    ) -> int:
        return self.write_bytes(data.encode(encoding or "utf-8", errors))

    def read_bytes(self) -> bytes:
        with asking(self):
            return filesystem(self).cat_file(str(self))

    def write_bytes(self, data: bytes) -> int:
        with asking(self):
            filesystem(self).pipe_file(str(self), data)
        return len(data)

    def create(self, data: bytes) -> None:
        """Writes a file that does not exist yet.

        Raises:
          FileExistsError: it exists, or another process was faster.
        """
        with asking(self):
            filesystem(self).pipe_file(str(self), data, mode="create")

    def stat(self) -> Stat:
        with asking(self):
            about = filesystem(self).info(str(self))
            found = filesystem(self).modified(str(self)) if about["type"] == "file" else None
        return Stat(about.get("size") or 0, found.timestamp() if found else 0.0, found is None)

    def details(self, *, below: bool = False) -> dict[str, dict[str, Any]]:
        """What fsspec knows of the files in this folder, and with `below` in all folders below it:
        "size" in bytes and the store's own entries, by name relative to this folder, sorted."""
        with asking(self):
            if below:
                found = filesystem(self).find(str(self), detail=True)
            else:
                found = {}
                with contextlib.suppress(FileNotFoundError):
                    listed = filesystem(self).ls(str(self), detail=True)
                    found = {about["name"]: about for about in listed if about["type"] == "file"}
        start = len(str(self).split("://", 1)[1].rstrip("/")) + 1
        named = {name[start:]: about for name, about in sorted(found.items())}
        return {name: about for name, about in named.items() if name and name[-1] != "/"}

    def files(self) -> list[str]:
        """The names of all files below this folder, relative to it, sorted."""
        return list(self.details(below=True))


def open_binary(path: PathLike, buffering: int = -1) -> IO[bytes]:
    """Opens a file for reading. `buffering` is that of `open`, for local files."""
    if not is_remote(path):
        return open(path, "rb", buffering=buffering)
    with asking(path):
        return as_path(path).open("rb")


def read_range(address: PathLike, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a file in a store, by one request; fewer where it ends."""
    with asking(address):
        return filesystem(address).cat_file(os.fspath(address), start=start, end=stop)


def joined(folder: PathLike, name: str) -> Path:
    """The path of a name that is relative to `folder`; an absolute path or address stays."""
    if is_remote(name) or not is_remote(folder):
        return as_path(name) if is_remote(name) else pathlib.Path(folder) / name
    return as_path(f"{os.fspath(folder)}/{name}")


def cache_folder(kind: str) -> pathlib.Path:
    """The folder of this user and machine for what can be made or fetched again."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return pathlib.Path(base, "unicom_jax", kind)


def absolute(path: PathLike) -> str:
    """Like `os.path.abspath`; addresses are unchanged."""
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)


def remove_tree(path: PathLike) -> None:
    """Removes a folder and its contents, if it exists; leaves what cannot be removed."""
    if not is_remote(path):
        shutil.rmtree(path, ignore_errors=True)
        return
    with contextlib.suppress(OSError):
        as_path(path).rmtree(missing_ok=True)


def download(address: PathLike, folder: pathlib.Path) -> None:
    """Copies a folder of a store into a local folder."""
    source = as_path(address)
    for name in source.files():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with asking(source):
            filesystem(source).get_file(str(source / name), str(target))


def upload(folder: pathlib.Path, address: PathLike, last: tuple[str, ...] = ()) -> None:
    """Copies a local folder into one of a store; uploads the files named `last` after the rest."""
    target = as_path(address)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
    for name in sorted(names, key=lambda name: (name in last, name)):
        with asking(target):
            filesystem(target).put_file(str(folder / name), str(target / name))


def copy_file(source: PathLike, target: PathLike) -> None:
    """Copies one file between file systems and stores; the copy is complete or does not exist.
    Within a store no byte passes through this machine."""
    source, target = as_path(source), as_path(target)
    if _is_one_store(source, target):
        with contextlib.suppress(NotImplementedError), asking(source):  # zonal buckets of GCS
            filesystem(source).cp_file(str(source), str(target))
            return
    if not is_remote(target):
        half = target.with_name(f"{target.name}.part")
        half.parent.mkdir(parents=True, exist_ok=True)
        with source.open("rb") as data, half.open("wb") as file:
            shutil.copyfileobj(data, file, COPIED_AT_ONCE)
        half.replace(target)
        return
    with asking(target), source.open("rb") as data, target.open("wb") as file:
        shutil.copyfileobj(data, file, COPIED_AT_ONCE)


def _is_one_store(source: Path, target: Path) -> bool:
    schemes = {str(path).split("://", 1)[0] if is_remote(path) else "" for path in (source, target)}
    return len(schemes) == 1 and schemes <= {"gs", "s3"}


def copy_tree(source: PathLike, target: PathLike, last: tuple[str, ...] = ()) -> None:
    """Copies a folder between file systems and stores. Files named as in `last` come after all
    others, those of subfolders first."""
    source, target = as_path(source), as_path(target)
    if is_remote(source):
        names = source.files()
    else:
        names = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
    marks = [name for name in names if name.rpartition("/")[2] in last]

    def copy(name: str) -> None:
        copy_file(f"{source}/{name}", f"{target}/{name}")

    with concurrent.futures.ThreadPoolExecutor(COPIES_AT_ONCE) as pool:
        for _ in pool.map(copy, [name for name in names if name not in set(marks)]):
            pass
    for name in sorted(marks, key=lambda name: (-name.count("/"), name)):
        copy(name)


@contextlib.contextmanager
def local_copy(path: PathLike) -> Iterator[pathlib.Path]:
    """The folder itself, or a temporary copy if it is in a store, for libraries that read only
    local files."""
    if not is_remote(path):
        yield pathlib.Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        download(path, pathlib.Path(folder))
        yield pathlib.Path(folder)
