"""Packed rows on disk, as `unicom data prepare packed` writes them and training reads them.

    DIR/tokenizer/                                    shared by all stages
    DIR/STAGE/manifest.json                           what the rows are, and how many there are
    DIR/STAGE/train-00000-of-00016.array_record       rows in the order of training
    DIR/STAGE/eval-00000-of-00001.array_record

A record is one row, a msgpack map

    {"format": "row/1", "counts": {str: int}, "fields": {name: [dtype, shape, bytes]}}

with the fields of `MixedBatch`, including those of its mask, without the batch axis. Row i is the
i-th row that a loader would pack, so row r of step s has the index s * batch_size + r.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grain
import ml_dtypes  # gives NumPy the name "bfloat16"
import msgpack
import numpy as np

from data_pipelines.faults import RecordError, SourceError, one_line
from data_pipelines.loading.loader import LoaderConfig
from data_pipelines.sequences.document import MASK_FIELDS
from data_pipelines.sequences.packing import stack_rows
from data_pipelines.sources.broken import read_or_next
from data_pipelines.sources.records import SUFFIX, ArrayRecordSource
from unicom_jax.core.batch import MaskIntervals, MixedBatch, Role

FORMAT = "row/1"
MANIFEST = "manifest.json"
PROBE = "probe.npz"
DTYPES = {name: np.dtype(name) for name in ("float32", "float16")}
DTYPES["bfloat16"] = np.dtype(ml_dtypes.bfloat16)  # for features


class Row(NamedTuple):
    """A row without the batch axis, and, for the first row of a window, what happened to the
    window's documents."""

    batch: MixedBatch
    counts: Mapping[str, int]


def encode_row(row: Row) -> bytes:
    """One record. Inverse of `decode_row`."""
    arrays = {
        field.name: getattr(row.batch, field.name)
        for field in dataclasses.fields(MixedBatch)
        if field.name != "mask" and getattr(row.batch, field.name) is not None
    }
    arrays |= {name: getattr(row.batch.mask, name) for name in MASK_FIELDS}
    fields = {name: [a.dtype.name, list(a.shape), a.tobytes()] for name, a in arrays.items()}
    return msgpack.packb({"format": FORMAT, "counts": dict(row.counts), "fields": fields})


def decode_row(data: bytes, where: str) -> Row:
    """Read one record.

    Raises:
      RecordError: it is damaged or not a row; the message begins with `where`.
    """
    try:
        content = msgpack.unpackb(data)
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}, not {FORMAT!r}")
        arrays = {
            name: np.frombuffer(raw, DTYPES.get(dtype, dtype)).reshape(shape)
            for name, (dtype, shape, raw) in content["fields"].items()
        }
        mask = MaskIntervals(*(arrays.pop(name) for name in MASK_FIELDS))
        if "draws" not in arrays:  # an older row: one draw per image, with the image's index
            drawn = arrays["image_index"][arrays["roles"] == Role.NOISY]
            images = np.arange(len(arrays["grids"]), dtype=np.int32)
            arrays["draws"] = np.where(np.isin(images, drawn), images, np.int32(-1))
        if "parts" not in arrays:  # an older row: which part its documents are from is unknown
            arrays["parts"] = np.full_like(arrays["roles"], -1)
        return Row(MixedBatch(mask=mask, **{"patches": None, **arrays}), content["counts"])
    except Exception as error:  # msgpack alone has half a dozen unrelated error types
        raise RecordError(
            f"{where}: broken row ({one_line(error)}): prepare the file again"
        ) from error


def rows_of(batch: MixedBatch) -> Iterator[MixedBatch]:
    """The rows of a batch, without the batch axis."""
    for index in range(len(batch.tokens)):
        yield _map(lambda leaf, index=index: leaf[index], batch)


def _map(function: Any, tree: Any) -> Any:
    if tree is None:
        return None
    if not dataclasses.is_dataclass(tree):
        return function(tree)
    names = [field.name for field in dataclasses.fields(tree)]
    return type(tree)(**{name: _map(function, getattr(tree, name)) for name in names})


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Maps a step to this process's part of a global batch, from rows on disk.

    Once all rows have been used, they are repeated, in a new order every time.

    Attributes:
      rows: a `Row` each; those that cannot be read are skipped, as in `read_or_next`.
      documents: the mean number of documents in a row: that many are lost with an unreadable row.
    """

    rows: Sequence[Row]
    config: LoaderConfig
    seed: int
    documents: float

    @functools.cached_property
    def _again(self) -> grain.MapDataset:
        return grain.MapDataset.range(len(self.rows)).seed(self.seed).shuffle().repeat()

    def __call__(self, step: int) -> tuple[MixedBatch, Counter]:
        counts: Counter = Counter()
        made = []
        for index in (step * self.config.rows + place for place in self.config.own_rows):
            beyond = index - len(self.rows)
            place = index if beyond < 0 else int(self._again[beyond])
            row, unreadable = read_or_next(self.rows, place)
            counts.update(row.counts)
            if unreadable:
                counts["unreadable"] += round(unreadable * self.documents)
            made.append(row.batch)
        return stack_rows(made), counts


# ---- the manifest -----------------------------------------------------------------------------


# Facts are recorded only if they differ from these values, so that older rows and runs, which lack
# them, compare equal.
UNSET = {
    "packing.balance": False,
    "packing.fill": False,
    "packing.views": 0,
    "sequence.image_positions": "grid",
    "sequence.edit_words": "after",
    "sequence.template_labels": False,
    "sequence.dummies": False,
    "sequence.unconditional": "empty",
    "sequence.understood": "same",
}
# What older rows do not record, with the value that applied to them.
BEFORE = {"packing.draws": 0, "sequence.fold": 1, "sequence.image_dropout": 0.0, **UNSET}
UNKNOWN = ("source.path",)  # not recorded either: any value is accepted


def check_facts(wanted: Mapping[str, Any], found: Mapping[str, Any], begin: str) -> None:
    """Raises a SourceError if two tables of facts that decide rows differ; it names the first key.

    Args:
      begin: start of the message, which continues "KEY=..., now it is ...".
    """
    left, right = dict(_flat(found)), dict(_flat(plain(wanted)))
    for key in sorted(left.keys() | right.keys()):
        old, new = (facts.get(key, BEFORE.get(key)) for facts in (left, right))
        if old != new and (key in left or key not in UNKNOWN):
            raise SourceError(
                f"{begin} {key}={old!r}, now it is {new!r}: use the old value or prepare the rows "
                "again, into another folder"
            )


def recorded(group: str, settings: Any) -> dict[str, Any]:
    """The fields of a dataclass as the facts of `group`, except those that are `UNSET`."""
    fields = dataclasses.asdict(settings)
    return {k: v for k, v in fields.items() if v != UNSET.get(f"{group}.{k}", ...)}


def plain(tree: Any) -> Any:
    """A tree as it is after a round trip through JSON: tuples become lists."""
    return json.loads(json.dumps(tree, default=list))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def read_manifest(directory: Path, stage: str) -> dict[str, Any]:
    """The manifest of a stage's rows.

    Raises:
      SourceError: there is none, or the preparation is not complete.
    """
    path = directory / stage / MANIFEST
    again = "run `unicom data prepare packed` with"
    flags = f"--stage={stage} --out={directory}"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(
            f"{path}: data.packed has no rows for stage {stage!r}: {again} {flags}, or unset it"
        ) from None
    except (OSError, ValueError) as error:
        raise SourceError(f"{path}: cannot be read ({one_line(error)}): {again} {flags}") from None
    if not manifest["complete"]:
        raise SourceError(
            f"{path}: the preparation is not complete: {again} {flags}; it resumes where it stopped"
        )
    return manifest


def open_rows(
    directory: Path,
    stage: str,
    split: str,
    facts: Mapping[str, Any],
    tokenizer: str,
    config: LoaderConfig,
    seed: int,
) -> PackedRows:
    """The rows of a split.

    Args:
      facts: what decides the rows in the run's configuration (`batches.row_facts`).
      tokenizer: fingerprint of the run's tokenizer.

    Raises:
      SourceError: they are missing, unfinished, incomplete, or were prepared for another run.
    """
    manifest = read_manifest(directory, stage)
    begin = f"{directory / stage}: the rows were made with"
    check_facts({**facts, "tokenizer": tokenizer}, manifest["facts"], begin)
    about = manifest["splits"][split]
    name = f"{split}-*-of-{about['shards']:05d}{SUFFIX}"
    files = sorted(map(str, (directory / stage).glob(name)))
    if len(files) != about["shards"]:
        raise SourceError(
            f"{directory / stage}: holds {len(files)} of {about['shards']} {split} files: copy the "
            "missing ones again, or run `unicom data prepare packed` again"
        )
    rows = ArrayRecordSource(files, decode_row)
    if len(rows) != about["rows"]:
        raise SourceError(
            f"{directory / stage}: the {split} files hold {len(rows)} rows, not the "
            f"{about['rows']} of {MANIFEST}: copy them again, or prepare them again"
        )
    return PackedRows(rows, config, seed, about["counts"]["documents"] / about["rows"])
