"""Folders of safetensors in the Hub's layout, read and written one tensor at a time.

    FOLDER/STEM.safetensors
    FOLDER/STEM-00001-of-00003.safetensors, ..., STEM.safetensors.index.json

STEM is "model" for transformers and "diffusion_pytorch_model" for diffusers. If a folder has both
the single file and an index, we read what those libraries read: transformers uses the single file
and diffusers the index (`weight_files`). Both directions hold one tensor at a time; reading holds
only the part that is requested. The format is eight bytes with the length of a JSON header, the
header, and the raw values (https://huggingface.co/docs/safetensors/index#format). The library
checks it when a file is opened. Contents are read and written here, since the library's reader maps
whole files (whose pages count as the process's memory) and its writer needs all tensors of a file
at once.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from unicom_jax.core.paths import is_pointer, is_remote, open_binary

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


# The bits of infinity: NaN has more.
EXPONENTS = {DTYPES["F16"]: 0x7C00, DTYPES["BF16"]: 0x7F80}


class WeightsError(Exception):
    """A folder of weights is missing, damaged or of another model. The message is one line."""


# diffusers looks for an index first, transformers for the single file.
INDEX_FIRST = "diffusion_pytorch_model"


# Bytes read at once if only some columns of a tensor are needed; values written at once.
CHUNK_BYTES = 16 * 2**20


@dataclasses.dataclass(frozen=True)
class TensorFact:
    """A header's entry for a tensor: shard, place in it, shape, and safetensors type ("F32")."""

    shard: Path
    shape: tuple[int, ...]
    dtype: str
    offset: int


@dataclasses.dataclass(frozen=True)
class TensorFolder:
    """A folder whose headers have been read; contents are read on request.

    `unread`: a file of weights that exists but is not read, see `WeightFiles`.
    """

    path: Path
    facts: Mapping[str, TensorFact]
    unread: Path | None = None

    def renamed(self, new_name: Callable[[str], str]) -> TensorFolder:
        """The same tensors under other names.

        Raises:
          WeightsError: two tensors get the same name.
        """
        facts: dict[str, TensorFact] = {}
        for name, fact in self.facts.items():
            if (new := new_name(name)) in facts:
                raise WeightsError(
                    f"{self.path} has {new} twice, once as {name}; remove one of the two"
                )
            facts[new] = fact
        return dataclasses.replace(self, facts=facts)

    def read_finite(self, name: str, window: Sequence[slice] = ()) -> np.ndarray:
        """As `read`.

        Raises:
          WeightsError: a value is NaN or infinite.
        """
        part = self.read(name, window)
        flat = part.reshape(-1)
        for start in range(0, flat.size, CHUNK_BYTES):  # avoids a mask as large as the tensor
            if not _all_finite(flat[start : start + CHUNK_BYTES]):
                raise WeightsError(
                    f"{self.facts[name].shard}: {name} holds NaN or infinite values; copy the file "
                    "again, or take weights from before training diverged"
                )
        return part

    def read(self, name: str, window: Sequence[slice] = ()) -> np.ndarray:
        """A tensor, or the part of it in a window, in its own type (bfloat16 from ml_dtypes).

        Args:
          window: slices of step 1 for its first axes; () selects the whole tensor.

        Raises:
          WeightsError: the file ends before the tensor does.
        """
        fact = self.facts[name]
        whole = tuple(slice(0, size) for size in fact.shape)
        rows, *columns = (*window, *whole[len(window) :]) or (slice(0, 1),)
        part = np.empty([s.stop - s.start for s in (rows, *columns)], DTYPES[fact.dtype])
        row_shape = fact.shape[1:]
        row_bytes = math.prod(row_shape) * part.itemsize
        with open_binary(fact.shard, buffering=0) as file:
            file.seek(fact.offset + rows.start * row_bytes)
            if tuple(columns) == whole[1:]:
                _read_into(file, part, fact.shard)
            else:
                step = max(1, CHUNK_BYTES // max(row_bytes, 1))
                for start in range(0, len(part), step):
                    target = part[start : start + step]
                    chunk = np.empty((len(target), *row_shape), part.dtype)
                    _read_into(file, chunk, fact.shard)
                    target[...] = chunk[(slice(None), *columns)]
        return part.reshape(() if not fact.shape else part.shape)


def _all_finite(values: np.ndarray) -> bool:
    """Whether no value is NaN or infinite. 16-bit types are tested by their bits, which is many
    times faster."""
    if (exponent := EXPONENTS.get(values.dtype)) is None:
        return bool(np.isfinite(values).all())
    magnitudes = values.view(np.uint16) & 0x7FFF
    return not magnitudes.size or int(magnitudes.max()) < exponent


def _read_into(file: io.RawIOBase, array: np.ndarray, path: Path) -> None:
    left = memoryview(array.reshape(-1).view(np.uint8))
    while len(left):  # one read returns at most 2 GiB
        if not (count := file.readinto(left)):
            raise WeightsError(f"{path} was truncated while it was read; copy it again")
        left = left[count:]


def open_tensors(folder: Path, stem: str = "model") -> TensorFolder:
    """Reads the headers of all files that `weight_files` names.

    Raises:
      WeightsError: there are no weights, a file is missing, truncated or unreadable, or the index
        names other tensors than the shards hold.
    """
    files = weight_files(folder, stem)
    facts: dict[str, TensorFact] = {}
    for path in files.shards:
        if not path.is_file():
            raise WeightsError(_missing(path, files, stem))
        try:
            facts |= _read_header(path)
        except (SafetensorError, OSError) as error:
            if is_pointer(path):
                raise WeightsError(f"{path} is a pointer of Git LFS; run git lfs pull") from error
            raise WeightsError(f"{path} is damaged ({error}); copy it again") from error
    for name, shard in sorted(files.promised.items()):
        if name not in facts or facts[name].shard.name != shard:
            raise WeightsError(
                f"{files.index} lists {name} in {shard}, which does not contain it; copy both "
                "files again"
            )
    return TensorFolder(folder, facts, files.unread)


@dataclasses.dataclass(frozen=True)
class WeightFiles:
    """The files of a folder that hold its weights; they may be missing.

    Attributes:
      shards: the files that are read. index: their index; None for a single file.
      promised: the shard of each tensor, according to the index.
      unread: a file that exists but is not read, since the others take precedence.
    """

    shards: tuple[Path, ...]
    index: Path | None = None
    promised: Mapping[str, str] = dataclasses.field(default_factory=dict)
    unread: Path | None = None

    @property
    def names(self) -> list[str]:
        """All files that a copy of the weights needs."""
        return [path.name for path in (*self.shards, *([self.index] if self.index else ()))]


def weight_files(folder: Path, stem: str = "model") -> WeightFiles:
    """The files of weights that transformers, or diffusers for its stem, reads in `folder`.

    Raises:
      WeightsError: the index is needed and cannot be read.
    """
    single, index = folder / f"{stem}.safetensors", _index_path(folder, stem)
    both = single.is_file() and index.is_file()
    if not index.is_file() or (both and stem != INDEX_FIRST):
        return WeightFiles((single,), unread=index if both else None)
    promised = _read_index(index)
    shards = tuple(folder / name for name in sorted(set(promised.values())))
    return WeightFiles(shards, index, promised, single if both else None)


def _missing(path: Path, files: WeightFiles, stem: str) -> str:
    if files.unread:
        return f"{path} is missing; copy it again, or delete {files.index} to read {files.unread}"
    if files.index:
        return f"{path} is missing, which {files.index.name} names; copy it into the folder again"
    if is_remote(path):
        return f"{path} is missing; give the folder that holds it"
    if path.is_symlink():
        return f"{path} is a link to {path.readlink()}, which is missing; copy that too"
    if other := sorted(path.parent.glob("*.bin")):
        return (
            f"{path} is missing, and {other[0].name} is no safetensors file; save the model as one"
        )
    return (
        f"{path} is missing; give the folder that holds it, or its shards with "
        f"{stem}.safetensors.index.json"
    )


def _index_path(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.safetensors.index.json"


def _read_header(path: Path) -> dict[str, TensorFact]:
    if not is_remote(path):
        with safe_open(path, framework="numpy"):  # checks the header against the file's size
            pass
    with open_binary(path) as file:
        length = int.from_bytes(file.read(8), "little")
        header = _json_object(file.read(length), path)
    header.pop("__metadata__", None)
    if is_remote(path):
        stop = 8 + length + max((about["data_offsets"][1] for about in header.values()), default=0)
        if (size := path.stat().st_size) != stop:
            raise OSError(f"it has {size} bytes, its header says {stop}")
    return {
        name: TensorFact(
            path, tuple(about["shape"]), about["dtype"], 8 + length + about["data_offsets"][0]
        )
        for name, about in header.items()
    }


def _json_object(text: bytes, path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path} is not a safetensors file ({error}); copy it again") from error


def _read_index(path: Path) -> dict[str, str]:
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        if not all(isinstance(shard, str) for shard in found.values()):
            raise TypeError("the name of a shard is not a string")
        if outside := [shard for shard in found.values() if Path(shard).name != shard]:
            raise ValueError(f"{outside[0]!r} is not a file of this folder")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(
            f"{path} is not an index of shards ({error!r}); copy it again"
        ) from error


def write_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str], np.ndarray],
    dtype: np.dtype,
    *,
    wider: Mapping[str, np.dtype] | None = None,
    stem: str = "model",
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes tensors; `tensor(name)` is called once for each, just before it is written.

    Shards are filled in the order of `shapes` up to `shard_bytes` (a larger tensor gets its own
    shard); a single shard has no index. Values are cast to `dtype`, or to their type in `wider`.
    Each file is byte for byte what safetensors' own writer makes of the same tensors.

    Raises:
      ValueError: a tensor does not have its shape in `shapes`, or values are too large for its
        type.
    """
    kinds = {name: (wider or {}).get(name, dtype) for name in shapes}
    plan, size = [[]], 0
    for name, shape in shapes.items():
        nbytes = math.prod(shape) * kinds[name].itemsize
        if plan[-1] and size + nbytes > shard_bytes:
            plan.append([])
            size = 0
        plan[-1].append(name)
        size += nbytes
    weight_map: dict[str, str] = {}
    for number, names in enumerate(plan, start=1):
        ending = f"-{number:05d}-of-{len(plan):05d}" if len(plan) > 1 else ""
        file = f"{stem}{ending}.safetensors"
        # By type and then by name, as the library's writer orders them.
        names.sort(key=lambda name: (-kinds[name].itemsize, name))
        _write_shard(folder / file, {name: shapes[name] for name in names}, tensor, kinds)
        weight_map |= dict.fromkeys(names, file)
    if len(plan) > 1:
        total = sum(math.prod(shapes[name]) * kind.itemsize for name, kind in kinds.items())
        listing = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _index_path(folder, stem).write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")


def _write_shard(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str], np.ndarray],
    kinds: Mapping[str, np.dtype],
) -> None:
    spelt = {known: name for name, known in DTYPES.items()}
    header, stop = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, stop = stop, stop + math.prod(shape) * kinds[name].itemsize
        header[name] = {
            "dtype": spelt[kinds[name]],
            "shape": list(shape),
            "data_offsets": [start, stop],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # values start at a multiple of eight
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            array = tensor(name)
            if array.shape != shape:
                raise ValueError(f"{name} was promised with shape {shape}, not {array.shape}")
            values = array.reshape(-1)
            for start in range(0, values.size, CHUNK_BYTES):  # avoids a full copy in another type
                chunk = _cast(values[start : start + CHUNK_BYTES], kinds[name], name)
                file.write(memoryview(np.ascontiguousarray(chunk).view(np.uint8)))


def _cast(values: np.ndarray, dtype: np.dtype, name: str) -> np.ndarray:
    """`values` in another type. Raises ValueError if they exceed the small range of float16."""
    with np.errstate(over="ignore"):
        cast = values.astype(dtype, copy=False)
    if dtype == DTYPES["F16"] and not np.isfinite(cast[np.isfinite(values)]).all():
        raise ValueError(f"{name} has values that float16 cannot hold; write bf16 or fp32 instead")
    return cast
