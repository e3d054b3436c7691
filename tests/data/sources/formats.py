"""Tiny data sets in the formats that sources read."""

from __future__ import annotations

import io
import json
import pathlib
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.decoding import encode_png


def gray(value: int) -> np.ndarray:
    return np.full((6, 5, 3), value, np.uint8)


def png(value: int) -> bytes:
    return encode_png(gray(value))


def write_tar(path: pathlib.Path, files: dict[str, bytes | str | dict]) -> pathlib.Path:
    """A tar file; texts become UTF-8 and dictionaries JSON."""
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            if isinstance(content, dict):
                content = json.dumps(content)
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_shards(folder: pathlib.Path, shards: int, samples: int) -> list[pathlib.Path]:
    """Shards s-000.tar, ... of gray pictures with their numbers as captions."""
    paths = []
    for shard in range(shards):
        files = {}
        for number in range(shard * samples, (shard + 1) * samples):
            files |= {f"{number:06d}.png": png(number), f"{number:06d}.txt": f"gray {number}\n"}
        paths.append(write_tar(folder / f"s-{shard:03d}.tar", files))
    return paths


def write_jsonl(path: pathlib.Path, rows: list) -> pathlib.Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def write_parquet(path: pathlib.Path, columns: dict, group: int = 2) -> pathlib.Path:
    pq.write_table(pa.table(columns), path, row_group_size=group)
    return path


def read_all(source) -> list[tuple[int | None, tuple[str, ...]]]:
    """(level of gray, captions) of every record."""
    examples = [source[index] for index in range(len(source))]
    return [(None if e.image is None else int(e.image[0, 0, 0]), e.captions) for e in examples]


def tf_example(**features: list[bytes]) -> bytes:
    made = tf_example_pb2.Example()
    for name, values in features.items():
        made.features.feature[name.replace("__", "/")].bytes_list.value.extend(values)
    made.features.feature["height"].int64_list.value.append(6)
    return made.SerializeToString()


def write_tf_examples(path, *records: bytes) -> str:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for data in records:
        writer.write(data)
    writer.close()
    return str(path)
