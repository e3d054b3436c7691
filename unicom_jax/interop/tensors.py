"""Folders of safetensors in the Hub's layout, read and written one tensor at a time.

    FOLDER/STEM.safetensors
    FOLDER/STEM-00001-of-00003.safetensors, ..., STEM.safetensors.index.json

STEM is "model" for transformers and "diffusion_pytorch_model" for diffusers. Reading maps a shard
into memory, so only the tensor that is looked at takes room; writing holds one shard.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class WeightsError(Exception):
    """A folder of weights that is missing, damaged or of another model. One line with the mend."""


@dataclasses.dataclass(frozen=True)
class TensorFact:
    """What a header says of a tensor: its shard, shape and safetensors type ("F32")."""

    shard: Path
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class TensorFolder:
    """An open folder: names and facts are known, contents are read when asked for."""

    path: Path
    facts: Mapping[str, TensorFact]
    shards: Mapping[Path, Any]

    def read(self, name: str) -> np.ndarray:
        """The tensor as a NumPy array of its own type (bfloat16 from ml_dtypes)."""
        return self.shards[self.facts[name].shard].get_tensor(name)


@contextlib.contextmanager
def open_tensors(folder: Path, stem: str = "model") -> Iterator[TensorFolder]:
    """Opens all shards of `folder` and reads their headers.

    Raises:
      WeightsError: no weights, a shard that is missing, cut short or unreadable, or an index that
        names other tensors than the shards hold.
    """
    index = folder / f"{stem}.safetensors.index.json"
    promised = _read_index(index) if index.is_file() else None
    files = {f"{stem}.safetensors"} if promised is None else set(promised.values())
    with contextlib.ExitStack() as stack:
        facts: dict[str, TensorFact] = {}
        shards = {}
        for path in sorted(folder / file for file in files):
            if not path.is_file():
                raise WeightsError(
                    f"{path} is missing; copy it into the folder again, or give the folder that "
                    f"holds {stem}.safetensors or its shards with {index.name}"
                )
            try:
                shard = shards[path] = stack.enter_context(safe_open(path, framework="numpy"))
                for name in shard.keys():  # noqa: SIM118 - no mapping, it only has keys()
                    piece = shard.get_slice(name)
                    facts[name] = TensorFact(path, tuple(piece.get_shape()), piece.get_dtype())
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"{path} is damaged ({error}); copy it again") from error
        _check_promise(index, promised, facts)
        yield TensorFolder(folder, facts, shards)


def _read_index(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text())["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{path} is no index of shards ({error!r}); copy it again") from error


def _check_promise(
    index: Path, promised: Mapping[str, str] | None, facts: Mapping[str, TensorFact]
) -> None:
    for name, shard in sorted((promised or {}).items()):
        if name not in facts or facts[name].shard.name != shard:
            raise WeightsError(
                f"{index} promises {name} in {shard}, which does not hold it; copy both again"
            )


def write_tensors(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensor: Callable[[str], np.ndarray],
    dtype: np.dtype,
    *,
    stem: str = "model",
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes tensors in the order of `shapes`; `tensor(name)` is asked for each just once.

    Tensors fill shards of at most `shard_bytes` (a larger tensor has one to itself); one shard
    alone gets no index. Values are cast to `dtype`.
    """
    plan, size = [[]], 0
    for name, shape in shapes.items():
        nbytes = int(np.prod(shape)) * dtype.itemsize
        if plan[-1] and size + nbytes > shard_bytes:
            plan.append([])
            size = 0
        plan[-1].append(name)
        size += nbytes
    weight_map: dict[str, str] = {}
    for number, names in enumerate(plan, start=1):
        ending = f"-{number:05d}-of-{len(plan):05d}" if len(plan) > 1 else ""
        file = f"{stem}{ending}.safetensors"
        held = {name: np.ascontiguousarray(tensor(name).astype(dtype)) for name in names}
        save_file(held, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    if len(plan) > 1:
        total = sum(int(np.prod(shape)) for shape in shapes.values()) * dtype.itemsize
        listing = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(listing, indent=2) + "\n")
